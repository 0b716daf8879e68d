"""The repaired interpreter computes what torch computes, in the types that it has as integers."""

import pytest
import torch
import triton
import triton.language as tl

N = 64


@triton.jit
def product_kernel(A, B, C, M: tl.constexpr):
    i = tl.arange(0, M)
    at = i[:, None] * M + i[None, :]
    tl.store(C + at, tl.dot(tl.load(A + at), tl.load(B + at)))


@triton.jit
def copy_kernel(X, Y, M: tl.constexpr):
    i = tl.arange(0, M)
    tl.store(Y + i, tl.load(X + i).to(Y.dtype.element_ty))


@triton.jit
def add_kernel(X, Y, M: tl.constexpr):
    i = tl.arange(0, M)
    x = tl.load(X + i)
    tl.store(Y + i, x + x * x)


@triton.jit
def sum_kernel(X, Y, M: tl.constexpr):
    tl.store(Y, tl.sum(tl.load(X + tl.arange(0, M)), 0))


@triton.jit
def count_kernel(X, Y):
    total = 0
    for i in tl.range(0, tl.load(X)):
        total += i
    tl.store(Y, total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products(dtype):
    a, b = torch.randn(N, N).to(dtype), torch.randn(N, N).to(dtype)
    c = torch.empty(N, N)
    product_kernel[(1,)](a, b, c, M=N)
    torch.testing.assert_close(c, a.float() @ b.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrowing_rounds_to_nearest_even_and_widening_is_exact(target):
    x = torch.cat((torch.randn(2000) * 10, torch.linspace(-2, 2, 2096)))
    y = torch.empty(4096, dtype=target)
    copy_kernel[(1,)](x, y, M=4096)
    assert torch.equal(y.float(), x.to(target).float())
    back = torch.empty(4096)
    copy_kernel[(1,)](y, back, M=4096)
    assert torch.equal(back, y.float())


def test_bf16_arithmetic_rounds_after_each_operation():
    x, y = torch.randn(N).bfloat16(), torch.empty(N).bfloat16()
    add_kernel[(1,)](x, y, M=N)
    assert torch.equal(y, x + x * x)


def test_a_bf16_sum_without_widening_is_an_error():
    with pytest.raises(Exception, match="widen bfloat16"):
        sum_kernel[(1,)](torch.randn(N).bfloat16(), torch.empty(1), M=N)


def test_a_loop_may_end_at_a_loaded_number():
    y = torch.zeros(1, dtype=torch.int32)
    count_kernel[(1,)](torch.tensor([5], dtype=torch.int32), y)
    assert y.item() == 10
