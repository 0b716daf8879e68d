"""Rotary embedding, the write into the pools, and pages that travel, against their torch twins."""

import random

import pytest
import torch
from place import DEVICE, bits, here_only, inside, needs_fp8, sized

from ramify.kernels.reference import cache, pages
from ramify.kernels.shapes import FP8
from ramify.radix_cache.kv_pool import KvPool

pytestmark = here_only
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HEADS = sized(
    [(12, 4, 64), (9, 3, 80), (32, 8, 128), (14, 2, 64), (3, 1, 256), (33, 11, 16)],
    [(4, 2, 16), (3, 1, 40)],
)
TOKENS, PAGE, PAGES = sized((33, 64, 10), (5, 16, 6))


def check_rope(heads, kv_heads, head_dim, dtype, *, normed=False, stored=None, tokens=TOKENS):
    """Queries as near as rounding allows; values, and what must not be written, to the bit."""
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    positions = torch.randint(500, (tokens,), dtype=torch.int32)
    slots = torch.randperm(PAGES * PAGE)[:tokens]
    angle = torch.rand(500, head_dim // 2) * 6.28
    cos_sin = torch.cat((angle.cos(), angle.sin()), 1)
    norms = [torch.rand(head_dim).to(dtype) + 0.5 if normed else None for _ in range(2)]
    scales = (1e-6, 0.5, 0.25) if stored else (1e-6, 1.0, 1.0)
    shape = (PAGES, kv_heads, PAGE, head_dim)
    theirs = [torch.full(shape, torch.nan).to(stored or dtype) for _ in "kv"]
    mine = [pool.clone().to(DEVICE) for pool in theirs]
    q_twin = cache.rope_write_kv(qkv, positions, slots, cos_sin, *theirs, heads, *norms, *scales)
    q = load_rope()(
        inside(qkv), positions.to(DEVICE), slots.to(DEVICE), inside(cos_sin), *mine, heads,
        *(None if x is None else inside(x) for x in norms), *scales,
    )  # fmt: skip
    near = 1e-5 if dtype is FP32 else 2e-2
    torch.testing.assert_close(q.cpu(), q_twin, atol=near, rtol=near)
    near = 0.26 if stored else near  # a key at a rounding boundary may fall to either side
    keys = [x.cpu().float() for x in (mine[0], theirs[0])]
    torch.testing.assert_close(*keys, atol=near, rtol=near, equal_nan=True)
    assert torch.equal(bits(mine[1]), bits(theirs[1]))


def load_rope():
    from ramify.kernels.triton.rope_cache import rope_write_kv

    return rope_write_kv


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_rope_and_write(heads, kv_heads, head_dim, dtype, normed):
    torch.manual_seed(0)
    check_rope(heads, kv_heads, head_dim, dtype, normed=normed)


@needs_fp8
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_rope_and_write_to_fp8_pools(heads, kv_heads, head_dim):
    torch.manual_seed(0)
    check_rope(heads, kv_heads, head_dim, BF16, stored=FP8)


@pytest.mark.parametrize("seed", range(sized(10, 2)))
def test_rope_of_random_shapes(seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    kv_heads, group = draw.randint(1, sized(8, 2)), draw.randint(1, sized(12, 3))
    head_dim = 8 * draw.randint(1, sized(32, 4))
    tokens = draw.randint(1, PAGES * PAGE - 1 if sized(True, False) else 5)
    check_rope(kv_heads * group, kv_heads, head_dim, draw.choice([BF16, FP16, FP32]), tokens=tokens)


LAYERS, N, KV_HEADS, DIM = sized((3, 9, 4, 128), (2, 7, 2, 16))


def pools(dtype):
    return [torch.randn(LAYERS, N, KV_HEADS, PAGE, DIM).to(dtype) for _ in "kv"]


@pytest.mark.parametrize("dtype", [BF16, FP32, FP8])
def test_pages_travel_through_host_memory(dtype):
    """Pinned on a GPU: the kernel reads and writes the host's memory itself."""
    from ramify.kernels.triton import page_copy

    keys, values = pools(dtype)
    mine = [x.to(DEVICE) for x in (keys, values)]
    shape = 5, 2, LAYERS, KV_HEADS, PAGE, DIM
    slots = torch.full(shape, torch.nan).to(dtype)
    oracle = slots.clone()
    slots = slots.pin_memory() if DEVICE.type == "cuda" else slots
    away, where = torch.tensor([6, 0, 3]), torch.tensor([1, 4, 2])
    page_copy.gather_pages(*mine, away.to(DEVICE), slots, where.to(DEVICE))
    finish()
    pages.gather_pages(keys, values, away, oracle, where)
    assert torch.equal(bits(slots), bits(oracle))
    again = [torch.full(x.shape, torch.nan).to(dtype) for x in (keys, values)]
    mine = [x.to(DEVICE) for x in again]
    page_copy.scatter_pages(*mine, away.to(DEVICE), slots, where.to(DEVICE))
    pages.scatter_pages(*again, away, oracle, where)
    for x, y in zip(mine, again, strict=True):
        assert torch.equal(bits(x), bits(y))


@pytest.mark.parametrize("dtype", [BF16, FP32, FP8])
def test_copies_of_the_first_slots(dtype):
    from ramify.kernels.triton import page_copy

    oracle = pools(dtype)
    mine = [x.to(DEVICE) for x in oracle]
    copies = torch.tensor([[1, 2, PAGE], [1, 4, 1], [3, 0, 7], [5, 6, PAGE - 1]])
    page_copy.copy_pages(*mine, copies.to(DEVICE))
    pages.copy_pages(*oracle, copies)
    for x, y in zip(mine, oracle, strict=True):
        assert torch.equal(bits(x), bits(y))


@pytest.mark.skipif(DEVICE.type == "cpu", reason="4 GB")
def test_pools_of_more_than_two_to_the_31_numbers():
    """Only the last pages are touched: an offset of 32 bits would be outside the pool."""
    from ramify.kernels.triton import page_copy

    kv_heads, size, head_dim = 2, 64, 128
    n_pages = 2**31 // (kv_heads * size * head_dim) + 3
    pool = KvPool(1, n_pages, kv_heads, size, head_dim, BF16, DEVICE)
    qkv = torch.randn(5, (4 + 2 * kv_heads) * head_dim).to(BF16).to(DEVICE)
    slots = (torch.arange(5) + (n_pages - 2) * size).to(DEVICE)
    positions, cos_sin = torch.arange(5, dtype=torch.int32).to(DEVICE), torch.ones(9, head_dim)
    load_rope()(qkv, positions, slots, cos_sin.to(DEVICE), pool.keys[0], pool.values[0], 4)
    copies = torch.tensor([[n_pages - 2, n_pages - 1, 3]]).to(DEVICE)
    page_copy.copy_pages(pool.keys, pool.values, copies)
    values = qkv.view(5, -1, head_dim)[:, -kv_heads:].transpose(0, 1)
    assert torch.equal(pool.values[0, -2, :, :5], values)
    assert torch.equal(pool.values[0, -1, :, :3], values[:, :3])
    assert torch.equal(pool.keys[0, -1, :, :3], pool.keys[0, -2, :, :3])
    assert not pool.values[0, 0].any()


def finish():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
