"""The mask on logits: C++ against plain torch, and both against bits counted one by one."""

import pytest
import torch

from ramify.kernels.dispatch import load_ops

OPS, REFERENCE = load_ops("cpu"), load_ops("reference")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random_mask(rows, words):
    """Words of all kinds: none allowed, all allowed, and some."""
    mask = torch.randint(-(2**31), 2**31, (rows, words), dtype=torch.int64).to(torch.int32)
    kind = torch.randint(0, 3, (rows, words))
    return mask.masked_fill(kind == 0, 0).masked_fill(kind == 1, -1)


@pytest.mark.parametrize("backend", [OPS, REFERENCE], ids=lambda ops: ops.backend)
def test_a_bit_is_a_token(backend):
    logits = torch.randn(3, 70)
    mask = random_mask(1, 3)
    before = logits.clone()
    backend.mask_logits(logits, torch.tensor([1]), mask)
    for token in range(70):
        allowed = mask[0, token // 32].item() >> token % 32 & 1
        assert logits[1, token] == (before[1, token] if allowed else -torch.inf)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 31, 32, 33, 100, 49152])
@pytest.mark.parametrize("words_missing", [0, 1, -2])
def test_both_backends_mask_alike(width, words_missing, dtype):
    """Also when the mask is shorter than the logits (their padding), or longer."""
    words = max(-(-width // 32) - words_missing, 0)
    memory = torch.full((6, width), 7.0, dtype=dtype)  # the first and last row are canaries
    logits = memory[1:5]
    logits.copy_(torch.randn(4, width))
    expected = logits.clone()
    rows, mask = torch.tensor([3, 0]), random_mask(2, words)
    REFERENCE.mask_logits(expected, rows, mask)
    OPS.mask_logits(logits, rows, mask)
    assert torch.equal(logits, expected)
    assert (memory[[0, 5]] == 7.0).all()


@pytest.mark.parametrize("backend", [OPS, REFERENCE], ids=lambda ops: ops.backend)
def test_wrong_arguments_are_refused(backend):
    logits, mask = torch.randn(2, 64), torch.zeros(1, 2, dtype=torch.int32)
    for rows in ([2], [-1]):
        with pytest.raises(ValueError, match="rows must be from 0 to 1"):
            backend.mask_logits(logits, torch.tensor(rows), mask)
    with pytest.raises(ValueError, match="rows must be a contiguous"):
        backend.mask_logits(logits, torch.tensor([0, 1]), mask)
    with pytest.raises(ValueError, match="mask must be a contiguous"):
        backend.mask_logits(logits, torch.tensor([0]), mask.long())
