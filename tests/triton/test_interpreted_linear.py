"""The linear of deterministic mode: against its twin, and bit for bit in any number of rows."""

import pytest
import torch
from guards import inside
from shim import dot_by_rows
from triton.runtime.interpreter import InterpreterBuilder

from ramify.kernels.dispatch import load_ops
from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.reference import linear as twin
from ramify.kernels.triton.linear import linear

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def packed(out, width, dtype, bias):
    numbers = inside(torch.randn(out).to(dtype)) if bias else None
    return PackedLinear(inside(torch.randn(out, width).to(dtype)), numbers, width, out)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 64, 40), (3, 200, 72), (70, 33, 130)])
def test_the_numbers_of_its_twin(rows, width, out, bias, dtype):
    weights = packed(out, width, dtype, bias)
    x = inside(torch.randn(rows, width).to(dtype))
    mine = linear(x, weights)
    for theirs in (twin.linear(x, weights), twin.linear_by_row(x, weights)):
        assert mine.dtype is theirs.dtype
        near = TOLERANCE[dtype] * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=near)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("op", [linear, twin.linear_by_row])
def test_a_row_has_the_same_bits_in_any_number_of_rows(op, dtype, monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_by_rows)
    weights = packed(72, 330, dtype, bias=True)
    x = torch.randn(150, 330).to(dtype)
    whole = op(x, weights)
    for rows in (1, 2, 7, 16, 63, 64, 65, 130):
        assert torch.equal(op(x[:rows], weights), whole[:rows]), rows
        assert torch.equal(op(x[-rows:], weights), whole[-rows:]), rows


@pytest.mark.parametrize("op", [linear, twin.linear_by_row])
def test_no_rows_and_wrong_sizes(op):
    weights = packed(8, 16, torch.float32, bias=True)
    assert op(torch.zeros(0, 16), weights).shape == (0, 8)
    with pytest.raises(ValueError, match="x must be 16 wide"):
        op(torch.zeros(2, 15), weights)


def test_it_is_an_op_only_where_rows_are_to_be_apart():
    apart, usual = load_ops("triton", rows_apart=True), load_ops("triton")
    assert (apart.rows_apart, usual.rows_apart) == (True, False)
    assert apart.linear is linear
    assert usual.linear is twin.linear
    assert apart.paged_attention is usual.paged_attention
