"""The kernels that write the pools against their torch twins; what they must not write is NaN."""

import pytest
import torch

from ramify.kernels.reference import cache, pages
from ramify.kernels.shapes import FP8
from ramify.kernels.triton import page_copy, rope_cache
from ramify.radix_cache.kv_pool import untouched

SHAPES = [(2, 2, 64), (9, 3, 80), (16, 2, 128), (3, 1, 256), (33, 11, 16)]


def rope_inputs(heads, kv_heads, head_dim, dtype, stored=None, page=16):
    tokens, n_pages = 5, 6
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    positions = torch.tensor([0, 7, 3, 99, 50], dtype=torch.int32)
    slots = torch.tensor([page, 5 * page + 3, page + 1, 2 * page - 1, 3])
    angle = torch.rand(100, head_dim // 2) * 6.28
    cos_sin = torch.cat((angle.cos(), angle.sin()), 1)
    shape = (n_pages, kv_heads, page, head_dim)
    pools = [torch.full(shape, torch.nan).to(stored or dtype) for _ in range(2)]
    return qkv, positions, slots, cos_sin, *pools, heads


def bits(x):
    """Numbers to be compared bit for bit, NaN and all."""
    return x.contiguous().view(torch.uint8)


def both(inputs, *rest):
    """(rotated queries, key pool, value pool) of the kernel and of the reference."""
    results = []
    for rope_write_kv in (rope_cache.rope_write_kv, cache.rope_write_kv):
        given = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
        results.append((rope_write_kv(*given, *rest), *given[4:6]))
    return results


def assert_close(mine, oracle, near):
    for x, y in zip(mine, oracle, strict=True):
        torch.testing.assert_close(x.float(), y.float(), atol=near, rtol=near, equal_nan=True)
        assert x.dtype is y.dtype


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_rope_and_write(heads, kv_heads, head_dim, dtype, normed):
    norms = [torch.rand(head_dim).to(dtype) + 0.5 if normed else None for _ in range(2)]
    mine, oracle = both(rope_inputs(heads, kv_heads, head_dim, dtype), *norms, 1e-5)
    assert_close(mine, oracle, {torch.float32: 1e-5}.get(dtype, 2e-2))
    if dtype is not torch.float32:  # rounded where the reference rounds, not only as near
        assert (mine[0] == oracle[0]).float().mean() > 0.95
    assert torch.equal(bits(mine[2]), bits(oracle[2]))


def test_int32_slots():
    inputs = rope_inputs(4, 2, 64, torch.float32)
    mine, oracle = both((*inputs[:2], inputs[2].int(), *inputs[3:]))
    assert_close(mine, oracle, 1e-5)


def test_an_fp8_pool_is_written_through_its_scales():
    inputs = rope_inputs(4, 2, 64, torch.float32, stored=FP8)
    inputs[0][0] *= 1e4  # beyond what fp8 holds: becomes the largest number, not NaN
    mine, oracle = both(inputs, None, None, 1e-6, 0.5, 0.25)
    assert_close(mine, oracle, 2e-1)  # keys at a rounding boundary may fall to either side
    assert torch.equal(bits(mine[2]), bits(oracle[2]))
    assert mine[2].float().nan_to_num().abs().max() == 448


def test_no_tokens():
    qkv, positions, slots, *rest = rope_inputs(4, 2, 64, torch.float32)
    q = rope_cache.rope_write_kv(qkv[:0], positions[:0], slots[:0], *rest)
    assert q.shape == (0, 4, 64)


def pools(dtype, layers=3, n_pages=7, kv_heads=2, page=16, head_dim=80):
    shape = (layers, n_pages, kv_heads, page, head_dim)
    return [torch.randn(shape).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, FP8])
def test_copies_of_the_first_slots(dtype):
    mine = pools(dtype)
    oracle = [x.clone() for x in mine]
    copies = torch.tensor([[1, 2, 16], [1, 4, 1], [3, 0, 7], [5, 6, 15]])
    page_copy.copy_pages(*mine, copies)
    pages.copy_pages(*oracle, copies)
    for x, y in zip(mine, oracle, strict=True):
        assert torch.equal(bits(x), bits(y))
    assert not torch.equal(mine[0][:, 1, :, 1:].float(), mine[0][:, 4, :, 1:].float())


def test_pools_of_more_than_two_to_the_31_elements():
    """Only the last pages are touched: an offset of 32 bits would be outside the pool."""
    page, (kv_heads, size, head_dim) = 2**14, (2, 64, 128)
    n_pages = 2**31 // page + 3
    qkv, positions, _, cos_sin, *_ = rope_inputs(4, kv_heads, head_dim, torch.bfloat16)
    slots = torch.arange(5) + (n_pages - 2) * size
    results = []
    for rope_write_kv, copy in (
        (rope_cache.rope_write_kv, page_copy.copy_pages),
        (cache.rope_write_kv, pages.copy_pages),
    ):
        pool = untouched((2, n_pages, kv_heads, size, head_dim), torch.bfloat16)
        rope_write_kv(qkv, positions, slots, cos_sin, *pool, 4)
        layer_of_keys, layer_of_values = pool[:1], pool[1:]
        copies = torch.tensor([[n_pages - 2, n_pages - 1, 3]])
        copy(layer_of_keys, layer_of_values, copies)
        results.append(pool[:, -2:].float())
    torch.testing.assert_close(*results, atol=2e-2, rtol=2e-2)
    assert results[0][:, 1, :, :3].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, FP8])
def test_pages_travel_to_slots_and_back(dtype):
    keys, values = pools(dtype)
    slots = torch.full((5, 2, 3, 2, 16, 80), torch.nan).to(dtype)
    oracle = slots.clone()
    away, where = torch.tensor([6, 0, 3]), torch.tensor([1, 4, 2])
    page_copy.gather_pages(keys, values, away, slots, where)
    pages.gather_pages(keys, values, away, oracle, where)
    assert torch.equal(bits(slots), bits(oracle))
    again = [torch.full_like(x.float(), torch.nan).to(dtype) for x in (keys, values)]
    expected = [x.clone() for x in again]
    home = torch.tensor([1, 2, 5])
    page_copy.scatter_pages(*again, home, slots, where)
    pages.scatter_pages(*expected, home, slots, where)
    for x, y in zip(again, expected, strict=True):
        assert torch.equal(bits(x), bits(y))
    assert torch.equal(bits(again[0][:, home]), bits(keys[:, away]))


def test_wrong_sizes_are_named():
    keys, values = pools(torch.float32)
    with pytest.raises(ValueError, match="values must be"):
        page_copy.copy_pages(keys, values[:, 1:], torch.zeros(1, 3, dtype=torch.int64))
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="slots must be"):
        page_copy.gather_pages(keys, values, one, torch.empty(2, 2, 3, 2, 16, 64), one)
