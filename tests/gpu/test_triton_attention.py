"""The Triton attention path on a real GPU: random ragged steps against the reference."""

import random
from dataclasses import replace

import pytest
import torch
from place import INTERPRETED, here_only, needs_fp8, on_a_gpu, sized, there
from steps import TOLERANCE, Step, assert_as_reference, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8

pytestmark = here_only


def attention():
    return load_ops("triton").paged_attention


def assert_same(step, options=PLAIN, near=None):
    """The step is on the CPU; its pools hold NaN wherever nothing may be read."""
    assert_as_reference(there(step).run(attention(), options), step, options, near)


def drawn(seed):
    """A random step of decode rows and chunks, some on one trunk, of any shape."""
    draw = random.Random(seed)
    page, trunk = draw.choice(sized([16, 64], [16])), draw.choice([0, 0, 4])
    longest, longest_chunk = sized((900, 700), (60, 30))
    rows, chunks = draw.randint(1, sized(12, 3)), draw.randint(0, sized(3, 1))
    kinds = [(trunk * page + draw.randint(1, longest), 1) for _ in range(rows)]
    lengths = draw.choices(range(1, longest_chunk), k=chunks)
    kinds += [(trunk * page + length, draw.randint(1, length)) for length in lengths]
    kv_heads, group = draw.choice(sized([1, 2, 8], [1, 2])), draw.choice([1, 3, 4, 8, 12])
    dtype = draw.choice([torch.bfloat16, torch.float16, torch.float32])
    head_dim = draw.choice(sized([64, 80, 96, 128, 256], [16, 40]))
    splits = draw.choice([1, 1, 16, 40])
    return make_step(
        kinds, kv_heads * group, kv_heads, head_dim, dtype,
        page=page, trunk=trunk, splits=splits, seed=seed)  # fmt: skip


@pytest.mark.parametrize("seed", range(sized(40, 6)))
def test_random_steps(seed):
    assert_same(drawn(seed))


@pytest.mark.parametrize("seed", range(40, sized(52, 43)))
def test_random_steps_with_options(seed):
    window = random.Random(seed).randint(1, sized(400, 40))
    assert_same(drawn(seed), AttentionOptions(window=window, soft_cap=20.0 * (seed % 2)))


@needs_fp8
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 2, 128), (14, 2, 64), (3, 1, 80)])
def test_fp8_pools(heads, kv_heads, head_dim):
    options = AttentionOptions(k_scale=0.5, v_scale=2.0)
    kinds = sized([(900, 1), (300, 1), (500, 200)], [(40, 1), (30, 20)])
    step = make_step(kinds, heads, kv_heads, head_dim, torch.bfloat16, page=64, stored=FP8)
    assert_same(step, options, near=6e-2)


def test_fp32_is_exact():
    kinds = sized([(300, 1), (200, 70)], [(70, 1), (40, 20)])
    assert_same(make_step(kinds, 4, 2, 64, torch.float32, page=64))


@on_a_gpu
@pytest.mark.parametrize("name", ["q", "k_pool", "v_pool"])
def test_a_tensor_on_the_cpu_is_refused(name):
    """By an error, not by reading what an address means elsewhere."""
    step = make_step([(70, 1), (40, 20)], 4, 2, 64, torch.bfloat16, page=64)
    mixed = replace(there(step), **{name: getattr(step, name)})
    with pytest.raises((ValueError, RuntimeError), match=r"cpu"):
        mixed.run(attention())
    torch.cuda.synchronize()
    assert_same(step)


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


def recorded(work):
    """(what `work` gives, a function that does it again in the same memory)."""
    out = work()  # compiles
    if INTERPRETED:
        return out, lambda: out.copy_(work())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return out, graph.replay


def test_a_recorded_launch_reads_the_work_list_anew():
    """The same graph for two decode steps of eight rows: without a trunk, and with one."""
    heads = sized(
        {"heads": 8, "kv_heads": 2, "head_dim": 128}, {"heads": 2, "kv_heads": 1, "head_dim": 16}
    )
    shape = {**heads, "dtype": torch.bfloat16, "page": 64}
    longer = sized(70, 3)
    steps = [
        there(make_step([(90 + longer * i, 1) for i in range(8)], **shape, splits=9)),
        there(make_step([(300 + longer * i, 1) for i in range(8)], **shape, trunk=4)),
    ]
    lists = [padded(step.work, 40, 64, 160) for step in steps]
    n_pages = max(len(step.k_pool) for step in steps)
    pool = steps[0].k_pool.new_zeros(2, n_pages, *steps[0].k_pool.shape[1:])
    fixed = Step(steps[0].q.clone(), *pool, replace(lists[0], items=lists[0].items.clone()))
    run = attention()
    out, replay = recorded(lambda: fixed.run(run))
    for step, work in zip(steps, lists, strict=True):
        for name, value in vars(work).items():
            if isinstance(value, torch.Tensor):
                getattr(fixed.work, name).copy_(value.clone())
        fixed.q.copy_(step.q)
        fixed.k_pool[: len(step.k_pool)] = step.k_pool
        fixed.v_pool[: len(step.v_pool)] = step.v_pool
        replay()
        near = TOLERANCE[torch.bfloat16]
        torch.testing.assert_close(out, step.run(reference), atol=near, rtol=near)
