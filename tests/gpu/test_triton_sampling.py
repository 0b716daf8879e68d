"""Adjusting and drawing on a GPU, at the size of real vocabularies, against the torch twins."""

import random

import pytest
import torch
from guards import untouched
from place import DEVICE, guarded, here_only, inside, sized, there
from random_draws import random_draws

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.reference import logits as twin_masks
from ramify.kernels.reference import sampling as twin

pytestmark = here_only
ROWS = sized(64, 9)
NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("width", sized([1, 33, 1000, 32000, 128256, 151936], [1, 33, 80]))
@pytest.mark.parametrize("spread", sized([0.5, 3.0, 10.0], [3.0]))
def test_draws_are_those_of_the_twin(width, spread):
    from ramify.kernels.triton.sampling import sample

    logits, draws = torch.randn(ROWS, width) * spread, random_draws(ROWS, 400)
    on_place, placed = inside(logits), there(draws)
    tokens = sample(on_place, placed).cpu()
    differ = (tokens != twin.sample(logits, draws)).sum()
    assert differ <= 3, "only a number within 1e-6 of a boundary may fall on its other side"
    assert torch.equal(sample(on_place[7:9].clone(), slice_of(placed, 7, 9)).cpu(), tokens[7:9])


def slice_of(draws, first, last):
    return Draws(**{name: value[first:last] for name, value in vars(draws).items()})


@pytest.mark.parametrize("dtype", sized([torch.bfloat16, torch.float16], [torch.bfloat16]))
def test_equal_logits_are_drawn_by_id(dtype):
    """Few values, so that every threshold falls among tokens that share it."""
    from ramify.kernels.triton.sampling import sample

    logits, draws = torch.randint(-2, 3, (ROWS, sized(5000, 70))).to(dtype), random_draws(ROWS, 400)
    differ = sample(inside(logits), there(draws)).cpu() != twin.sample(logits, draws)
    assert differ.sum() <= 1


def test_rows_without_numbers_draw_nothing():
    from ramify.kernels.triton.sampling import sample

    never, nan = -torch.inf, torch.nan
    logits = torch.tensor([[never, never], [nan, never], [nan, 1.0], [0.0, torch.inf]]).repeat(4, 1)
    tokens = sample(inside(logits), there(random_draws(16, 400))).tolist()
    assert tokens == [-1, -1, 1, 1] * 4


def random_adjustments(draw, rows, width):
    """Of some rows: penalties, a mask, both; a bias of some tokens."""
    some = draw.sample(range(rows), draw.randint(1, rows))
    n, masks = len(some), 3
    bias = [(draw.choice(some), token) for token in draw.sample(range(width), min(6, width))]
    return Adjustments(
        torch.tensor(some),
        torch.tensor([draw.randint(-1, rows - 1) for _ in some], dtype=torch.int32),
        torch.tensor([draw.randint(-1, masks - 1) for _ in some], dtype=torch.int32),
        torch.rand(n) + 0.5,
        torch.randn(n),
        torch.randn(n),
        (torch.randint(0, 8, (rows, width)) * (torch.rand(rows, width) < 0.4)).int(),
        torch.randint(-(2**31), 2**31, (masks, max(width // 32, 1))).int(),
        torch.tensor([row for row, _ in bias]),
        torch.tensor([token for _, token in bias]),
        torch.tensor([draw.choice([2.5, -torch.inf, -1.0]) for _ in bias]),
    )


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("seed", range(sized(6, 2)))
def test_adjusted_logits_are_those_of_the_twin(seed, dtype):
    from ramify.kernels.triton.logits import adjust_logits

    torch.manual_seed(seed)
    draw = random.Random(seed)
    rows, width = draw.randint(1, sized(64, 5)), draw.choice(sized([33, 32001, 151936], [33, 100]))
    wants = random_adjustments(draw, rows, width)
    logits = (torch.randn(rows, width) * 4).to(dtype)
    mine, memory = guarded(logits)
    adjust_logits(mine, there(wants))
    twin.adjust_logits(logits, wants)
    # narrow types: the twin rounds after the penalties and after the bias too
    torch.testing.assert_close(mine.cpu(), logits, rtol=NEAR[dtype], atol=NEAR[dtype])
    assert untouched(memory)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("width", "words"), sized([(151936, 4748), (32001, 1001), (100, 1)], [(31, 1), (100, 1)])
)
def test_masks_are_those_of_the_twin(width, words, dtype):
    from ramify.kernels.triton.logits import mask_logits

    rows = torch.tensor([3, 0])
    logits, mask = torch.randn(4, width).to(dtype), torch.randint(-(2**31), 2**31, (2, words)).int()
    mine, memory = guarded(logits)
    mask_logits(mine, rows.to(DEVICE), mask.to(DEVICE))
    twin_masks.mask_logits(logits, rows, mask)
    assert torch.equal(mine.cpu(), logits)
    assert untouched(memory)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="4 GB")
def test_masks_beyond_two_to_the_31_numbers():
    from ramify.kernels.triton.logits import mask_logits

    width = 151936
    logits = torch.zeros(2**31 // width + 2, width, dtype=torch.bfloat16, device=DEVICE)
    last = len(logits) - 1
    mask = torch.full((1, width // 32), -1, dtype=torch.int32, device=DEVICE)
    mask[0, -1] = 1
    mask_logits(logits, torch.tensor([last], device=DEVICE), mask)
    assert (logits[last] == -torch.inf).sum() == 31
    assert (logits[last - 1] == 0).all()
