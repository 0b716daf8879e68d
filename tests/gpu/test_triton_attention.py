"""The Triton attention path on a real GPU: random ragged steps against the reference."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "triton"))
from steps import TOLERANCE, Step, in_large_tile, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.reference import cache, pages
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.tiles import large_tile, with_descriptors
from ramify.kernels.work_list import WorkList

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def on_gpu(value):
    """A tensor, or what holds tensors, on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, WorkList | Step):
        return type(value)(**{name: on_gpu(item) for name, item in vars(value).items()})
    return value


def attention():
    return load_ops("triton").paged_attention


def by_descriptors(step):
    """Attention whose large tiles come through tensor descriptors: from compute capability 9.0."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no tensor descriptors")
    tile = large_tile(step.q.shape[2], step.q.dtype.itemsize)
    return in_large_tile(with_descriptors(tile))


def assert_same(step, options=PLAIN, near=None, mine=None):
    mine, oracle = step.run(mine or attention(), options), step.run(reference, options)
    near = near or TOLERANCE[step.q.dtype]
    torch.testing.assert_close(mine.float(), oracle.float(), atol=near, rtol=near)


def drawn(seed, pages=(16, 64), head_dims=(64, 80, 96, 128, 256)):
    """A random step of decode rows and chunks, some on one trunk, of any shape."""
    draw = random.Random(seed)
    page, trunk = draw.choice(pages), draw.choice([0, 0, 4])
    kinds = [(trunk * page + draw.randint(1, 900), 1) for _ in range(draw.randint(1, 12))]
    chunks = draw.choices(range(1, 700), k=draw.randint(0, 3))
    kinds += [(trunk * page + length, draw.randint(1, length)) for length in chunks]
    kv_heads, group = draw.choice([1, 2, 8]), draw.choice([1, 3, 4, 8, 12])
    dtype = draw.choice([torch.bfloat16, torch.float16])
    head_dim, splits = draw.choice(head_dims), draw.choice([1, 1, 16, 40])
    return make_step(
        kinds, kv_heads * group, kv_heads, head_dim, dtype,
        page=page, trunk=trunk, splits=splits, seed=seed)  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_random_steps(seed):
    assert_same(on_gpu(drawn(seed)))


@pytest.mark.parametrize("seed", range(40, 50))
def test_random_steps_with_options(seed):
    options = AttentionOptions(window=random.Random(seed).randint(1, 400), soft_cap=20.0)
    assert_same(on_gpu(drawn(seed)), options)


@pytest.mark.parametrize("seed", range(50, 80))
def test_random_steps_by_descriptors(seed):
    """NaN is in every slot that no request owns, and descriptors bring it."""
    step = on_gpu(drawn(seed, pages=(64, 128), head_dims=(64, 128, 256)))
    assert_same(step, mine=by_descriptors(step))


@pytest.mark.parametrize("seed", range(80, 90))
def test_random_steps_with_options_by_descriptors(seed):
    options = AttentionOptions(window=random.Random(seed).randint(1, 400), soft_cap=20.0)
    step = on_gpu(drawn(seed, pages=(64,), head_dims=(64, 128)))
    assert_same(step, options, mine=by_descriptors(step))


def test_fp8_pools_by_descriptors():
    options = AttentionOptions(k_scale=0.5, v_scale=2.0)
    step = make_step([(900, 1), (500, 200)], 8, 2, 128, torch.bfloat16, page=64, stored=FP8)
    step = on_gpu(step)
    assert_same(step, options, near=6e-2, mine=by_descriptors(step))


def test_a_recorded_launch_keeps_its_descriptors():
    """The pools are filled after the recording: it must read them, not what they held."""
    full = on_gpu(make_step([(400, 130), (90, 1)], 8, 2, 128, torch.bfloat16, page=64))
    pools = [torch.zeros_like(pool) for pool in (full.k_pool, full.v_pool)]
    step = Step(full.q, *pools, full.work)
    mine = by_descriptors(step)
    step.run(mine)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.run(mine)
    for pool, filled in zip(pools, (full.k_pool, full.v_pool), strict=True):
        pool.copy_(filled)
    graph.replay()
    near = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(out, full.run(reference), atol=near, rtol=near)


def test_fp8_pools():
    options = AttentionOptions(k_scale=0.5, v_scale=2.0)
    kinds = [(900, 1), (300, 1), (500, 200)]
    step = make_step(kinds, 8, 2, 128, torch.bfloat16, page=64, stored=FP8)
    assert_same(on_gpu(step), options, near=6e-2)


def test_fp32_is_exact():
    assert_same(on_gpu(make_step([(300, 1), (200, 70)], 4, 2, 64, torch.float32, page=64)))


def padded(work, n_items, n_partials, pages):
    """The work list with its arrays filled up to fixed sizes, as a recorded launch needs them."""

    def filled(x, length):
        shape = (length - len(x), *x.shape[1:])
        return torch.cat((x, torch.zeros(shape, dtype=x.dtype, device=x.device)))

    return replace(
        work,
        items=filled(work.items, n_items),
        rows=filled(work.rows, 40),
        pages=filled(work.pages, pages),
        merge_index=filled(work.merge_index, n_partials),
        n_partials=n_partials,
        max_rows=8,
        total_rows=40,
    )


def test_a_recorded_launch_reads_the_work_list_anew():
    """The same graph for two decode steps of eight rows: without a trunk, and with one."""
    shape = {"heads": 8, "kv_heads": 2, "head_dim": 128, "dtype": torch.bfloat16, "page": 64}
    steps = [
        on_gpu(make_step([(90 + 70 * i, 1) for i in range(8)], **shape, splits=9)),
        on_gpu(make_step([(300 + 70 * i, 1) for i in range(8)], **shape, trunk=4)),
    ]
    lists = [padded(step.work, 40, 64, 160) for step in steps]
    n_pages = max(len(step.k_pool) for step in steps)
    pool = steps[0].k_pool.new_zeros(2, n_pages, *steps[0].k_pool.shape[1:])
    fixed = Step(steps[0].q.clone(), *pool, replace(lists[0], items=lists[0].items.clone()))
    run = attention()
    fixed.run(run)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fixed.run(run)
    for step, work in zip(steps, lists, strict=True):
        for name, value in vars(work).items():
            if isinstance(value, torch.Tensor):
                getattr(fixed.work, name).copy_(value.clone())
        fixed.q.copy_(step.q)
        fixed.k_pool[: len(step.k_pool)] = step.k_pool
        fixed.v_pool[: len(step.v_pool)] = step.v_pool
        graph.replay()
        near = TOLERANCE[torch.bfloat16]
        torch.testing.assert_close(out, step.run(reference), atol=near, rtol=near)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_rope_and_write(head_dim):
    heads, kv_heads, tokens = 12, 4, 33
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).bfloat16()
    positions = torch.randint(500, (tokens,), dtype=torch.int32)
    slots = torch.randperm(10 * 64)[:tokens]
    cos_sin = torch.randn(500, head_dim)
    norms = [torch.rand(head_dim).bfloat16() for _ in range(2)]
    results = []
    for op in (load_ops("triton").rope_write_kv, cache.rope_write_kv):
        pools = torch.zeros(2, 10, kv_heads, 64, head_dim).bfloat16().cuda()
        inputs = map(on_gpu, (qkv, positions, slots, cos_sin))
        q = op(*inputs, pools[0], pools[1], heads, *map(on_gpu, norms))
        results.append((q, pools))
    for mine, oracle in zip(*results, strict=True):
        torch.testing.assert_close(mine, oracle, atol=2e-2, rtol=2e-2)


def test_pages_travel_through_pinned_memory():
    from ramify.kernels.triton import page_copy

    keys, values = torch.randn(2, 3, 9, 4, 64, 128).bfloat16().cuda()
    slots = torch.zeros(5, 2, 3, 4, 64, 128).bfloat16().pin_memory()
    away, where = torch.tensor([6, 0, 3]).cuda(), torch.tensor([1, 4, 2]).cuda()
    page_copy.gather_pages(keys, values, away, slots, where)
    torch.cuda.synchronize()
    oracle = torch.zeros_like(slots)
    pages.gather_pages(keys.cpu(), values.cpu(), away.cpu(), oracle, where.cpu())
    assert torch.equal(slots, oracle)
    again = torch.zeros(2, 3, 9, 4, 64, 128).bfloat16().cuda()
    page_copy.scatter_pages(again[0], again[1], away, slots, where)
    assert torch.equal(again[:, :, away], torch.stack((keys, values))[:, :, away])
    page_copy.copy_pages(keys, values, torch.tensor([[6, 1, 10]]).cuda())
    assert torch.equal(keys[:, 1, :, :10], keys[:, 6, :, :10])
