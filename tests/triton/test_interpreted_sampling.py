"""Adjusting logits and drawing tokens in Triton against their torch twins, in many small blocks."""

import pytest
import torch
from guards import guarded, inside, untouched
from random_draws import random_draws

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.reference import logits as twin_masks
from ramify.kernels.reference import sampling as twin
from ramify.kernels.triton import logits as mine_logits
from ramify.kernels.triton.sampling import sample, sample_in_blocks

NEVER = -torch.inf


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("rows", "width"), [(16, 1), (16, 33), (16, 80)])
def test_draws_are_those_of_the_twin(rows, width):
    logits = inside(torch.randn(rows, width) * 3)
    draws = random_draws(rows, 40)
    assert torch.equal(sample_in_blocks(logits, draws, 32), twin.sample(logits, draws))


def test_many_equals_are_cut_and_drawn_by_id():
    """Few values, so that every threshold falls among tokens that share it."""
    logits = torch.randint(-2, 3, (16, 70)).float()
    draws = random_draws(16, 40)
    tokens = sample_in_blocks(logits, draws, 32)
    assert torch.equal(tokens, twin.sample(logits, draws))


def test_the_ends_of_the_unit_interval():
    logits = torch.randn(16, 50)
    logits[:, ::3] = NEVER
    logits[:, 1::3] = -200.0
    draws = random_draws(16, 40)
    for random in (0.0, 1 - 2**-53):
        draws.random.fill_(random)
        assert torch.equal(sample_in_blocks(logits, draws, 32), twin.sample(logits, draws))


def test_min_p_keeps_what_has_just_its_share():
    logits = torch.tensor([[0.5 * 0.999, 1.0, 0.5 * 1.001], [0.5, 1.0, 0.1]]).log()
    ones = torch.ones(2)
    draws = Draws(ones, -ones.int(), ones.double(), ones / 2, ones.double() - 2**-53)
    assert sample(logits, draws).tolist() == twin.sample(logits, draws).tolist()
    assert sample(logits[:1], Draws(*(x[:1] for x in vars(draws).values()))).tolist() == [2]
    draws.min_p.fill_(0.501)
    assert sample(logits, draws).tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_in_one_block(dtype):
    logits, draws = torch.randn(8, 60).to(dtype), random_draws(8, 40)
    assert torch.equal(sample(logits, draws), twin.sample(logits, draws))


def test_rows_without_numbers_and_with_strange_ones():
    logits = torch.tensor([[NEVER, NEVER], [torch.nan, NEVER], [torch.nan, 1.0], [0.0, torch.inf]])
    logits = logits.repeat(4, 1)
    draws = random_draws(16, 40)
    tokens = sample(logits, draws)
    assert tokens.tolist() == [-1, -1, 1, 1] * 4
    assert torch.equal(tokens, twin.sample(logits, draws))


def test_a_row_draws_the_same_in_any_batch():
    logits, draws = torch.randn(8, 40), random_draws(8, 40)
    together = sample_in_blocks(logits, draws, 32)
    for row in range(8):
        only = Draws(*(value[row : row + 1] for value in vars(draws).values()))
        assert sample_in_blocks(logits[row : row + 1], only, 32) == together[row]


def random_adjustments(width):
    """Rows 4, 0 and 2 of 5: with both penalties and a mask, with one, and with the other."""
    history = torch.randint(0, 8, (3, width)) * (torch.rand(3, width) < 0.4)
    mask = torch.randint(-(2**31), 2**31, (2, width // 32))  # a word short of the last tokens
    tokens = torch.randperm(width)[:6]
    bias = torch.randn(6)
    bias[::3] = NEVER
    return Adjustments(
        torch.tensor([4, 0, 2]),
        torch.tensor([1, -1, 2], dtype=torch.int32),
        torch.tensor([0, 1, -1], dtype=torch.int32),
        torch.tensor([1.3, 0.7, 0.6]),
        torch.tensor([0.5, 1.0, -0.3]),
        torch.tensor([-0.2, 1.0, 0.9]),
        history.int(),
        mask.int(),
        torch.tensor([0, 4, 4, 4, 1, 2]),
        tokens,
        bias,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [33, 100, 4101])
def test_adjusted_logits_are_those_of_the_twin(width, dtype):
    logits, memory = guarded((torch.randn(5, width) * 4).to(dtype))
    theirs, before, wants = logits.clone(), logits.clone(), random_adjustments(width)
    mine_logits.adjust_logits(logits, wants)
    twin.adjust_logits(theirs, wants)
    # narrow types: the twin rounds after the penalties and after the bias too
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(logits, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(logits[3], before[3]), "this row wants nothing"
    assert untouched(memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "words"), [(31, 1), (100, 4), (100, 1), (40, 5), (64, 0)])
def test_masks_are_those_of_the_twin(width, words, dtype):
    logits, memory = guarded(torch.randn(4, width).to(dtype))
    theirs = logits.clone()
    rows, mask = torch.tensor([3, 0]), torch.randint(-(2**31), 2**31, (2, words)).int()
    mine_logits.mask_logits(logits, rows, mask)
    twin_masks.mask_logits(theirs, rows, mask)
    assert torch.equal(logits, theirs)
    assert untouched(memory)


def test_rows_outside_the_logits_are_left_alone():
    logits, memory = guarded(torch.zeros(2, 64))
    zeros = torch.zeros(2, 2, dtype=torch.int32)
    mine_logits.mask_logits(logits, torch.tensor([2, -1]), zeros)
    assert (logits == 0).all()
    assert untouched(memory)
