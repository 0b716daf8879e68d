"""Adjusting and drawing on a GPU, at the size of real vocabularies, against the torch twins."""

import pytest
import torch

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.reference import sampling as twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.mark.parametrize("width", [1000, 32000, 151936])
@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_draws_are_those_of_the_twin(width, spread):
    from ramify.kernels.triton.sampling import sample

    torch.manual_seed(0)
    rows = 64
    i = torch.arange(rows)
    logits = torch.randn(rows, width) * spread
    draws = Draws(
        torch.where(i % 16 == 15, 0.0, torch.rand(rows) * 2 + 0.1),
        torch.where(i & 1 > 0, torch.randint(1, 400, (rows,)), -1).int(),
        torch.where(i & 2 > 0, torch.rand(rows).double(), 1.0),
        torch.where(i & 4 > 0, torch.rand(rows) * 0.3, 0.0),
        torch.rand(rows).double(),
    )
    on_gpu = Draws(**{name: value.cuda() for name, value in vars(draws).items()})
    tokens = sample(logits.cuda(), on_gpu).cpu()
    differ = (tokens != twin.sample(logits, draws)).sum()
    assert differ <= 3, "only a number within 1e-6 of a boundary may fall on its other side"
    assert torch.equal(sample(logits[7:9].cuda(), slice_of(on_gpu, 7, 9)).cpu(), tokens[7:9])


def slice_of(draws, first, last):
    return Draws(**{name: value[first:last] for name, value in vars(draws).items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adjusted_logits_are_those_of_the_twin(dtype):
    from ramify.kernels.triton.logits import adjust_logits

    torch.manual_seed(0)
    width, masks = 32001, 2
    wants = Adjustments(
        torch.tensor([4, 0, 2]),
        torch.tensor([1, -1, 2], dtype=torch.int32),
        torch.tensor([0, 1, -1], dtype=torch.int32),
        torch.tensor([1.3, 0.7, 0.6]),
        torch.tensor([0.5, 1.0, -0.3]),
        torch.tensor([-0.2, 1.0, 0.9]),
        torch.randint(0, 8, (3, width)).int(),
        torch.randint(-(2**31), 2**31, (masks, width // 32)).int(),
        torch.tensor([0, 4, 4, 1]),
        torch.randperm(width)[:4],
        torch.tensor([2.5, -torch.inf, 1.0, -1.0]),
    )
    logits = (torch.randn(5, width) * 4).to(dtype)
    mine = logits.cuda()
    adjust_logits(mine, Adjustments(**{name: x.cuda() for name, x in vars(wants).items()}))
    twin.adjust_logits(logits, wants)
    tolerance = 1e-5 if dtype is torch.float32 else 1.6e-2
    torch.testing.assert_close(mine.cpu(), logits, rtol=tolerance, atol=tolerance)


def test_masks_beyond_two_to_the_31_numbers():
    from ramify.kernels.triton.logits import mask_logits

    width = 151936
    logits = torch.zeros(2**31 // width + 2, width, dtype=torch.bfloat16, device="cuda")
    last = len(logits) - 1
    mask = torch.full((1, width // 32), -1, dtype=torch.int32, device="cuda")
    mask[0, -1] = 1
    mask_logits(logits, torch.tensor([last], device="cuda"), mask)
    assert (logits[last] == -torch.inf).sum() == 31
    assert (logits[last - 1] == 0).all()
