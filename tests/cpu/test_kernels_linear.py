"""Linear layers on packed weights, against exact arithmetic."""

import pytest
import torch

from ramify.kernels.cpu.linear import pack_onednn
from ramify.kernels.dispatch import load_ops

OPS, REFERENCE = load_ops("cpu"), load_ops("reference")
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


def assert_exact(result, x, weight, bias):
    """As near to the exact sum as rounding its terms and the result allows."""
    exact = x.double() @ weight.double().t()
    terms = x.double().abs() @ weight.double().abs().t()
    if bias is not None:
        exact, terms = exact + bias.double(), terms + bias.double().abs()
    bound = EPSILON[x.dtype] * exact.abs() + 64 * EPSILON[torch.float32] * terms
    assert ((result.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("ops", [OPS, REFERENCE], ids=["cpu", "reference"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 6, 7, 17, 200])
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(40, 48), (8, 64), (64, 130), (1500, 20)]
)
def test_linear(in_features, out_features, tokens, bias, ops, dtype):
    weight = torch.randn(out_features, in_features).to(dtype)
    shift = torch.randn(out_features).to(dtype) if bias else None
    x = torch.randn(tokens, in_features).to(dtype)
    packed = ops.pack_linear(weight, shift)
    assert (packed.in_features, packed.out_features) == (in_features, out_features)
    assert_exact(ops.linear(x, packed), x, weight, shift)


@pytest.mark.parametrize("dtype", EPSILON)
def test_odd_widths(dtype):
    """Pairs of bf16 need an even width: others take another way, and are right too."""
    x, weight = torch.randn(3, 33).to(dtype), torch.randn(5, 33).to(dtype)
    assert_exact(OPS.linear(x, OPS.pack_linear(weight, None)), x, weight, None)


@pytest.mark.parametrize("dtype", EPSILON)
def test_onednn_layout(dtype):
    """What machines with matrix units use."""
    x, weight, bias = (torch.randn(s).to(dtype) for s in [(9, 96), (64, 96), (64,)])
    packed = pack_onednn(weight, bias)
    if packed is None:
        pytest.skip("oneDNN does not take this type here")
    assert packed.layout == "onednn"
    assert_exact(OPS.linear(x, packed), x, weight, bias)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_batch(threads, dtype):
    """Bit for bit, in any number of rows and threads: the promise of deterministic mode."""
    packed = OPS.pack_linear(torch.randn(200, 1100).to(dtype), None)
    if packed.layout != "panels":
        pytest.skip("this machine computes with oneDNN, which makes no such promise")
    x = torch.randn(250, 1100).to(dtype)
    whole = OPS.linear(x, packed)
    torch.set_num_threads(threads)
    for rows in (1, 2, 3, 5, 6, 7, 13, 64, 193, 249):
        assert torch.equal(OPS.linear(x[:rows], packed), whole[:rows]), rows
        assert torch.equal(OPS.linear(x[-rows:], packed), whole[-rows:]), rows


@pytest.mark.parametrize("ops", [OPS, REFERENCE], ids=["cpu", "reference"])
def test_wrong_sizes_are_named(ops):
    packed = ops.pack_linear(torch.randn(8, 16), None)
    with pytest.raises(ValueError, match="x must be 16 wide"):
        ops.linear(torch.randn(2, 15), packed)
    with pytest.raises(ValueError, match="float32, got 16"):
        ops.linear(torch.randn(2, 16).bfloat16(), packed)
