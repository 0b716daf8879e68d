"""Attention whose keys come through tensor descriptors: the same values as by pointers."""

import random

import pytest
import torch
from place import here_only, on_a_gpu, sized, there
from steps import TOLERANCE, Step, assert_as_reference, in_large_tile, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.launch import compute_capability
from ramify.kernels.triton.tiles import DESCRIPTORS_FROM, large_tile, with_descriptors

pytestmark = here_only
BF16 = torch.bfloat16


def by_descriptors(step):
    """Attention whose large tiles come through tensor descriptors."""
    if compute_capability() < DESCRIPTORS_FROM:
        pytest.skip("this GPU has no tensor descriptors")
    tile = large_tile(step.q.shape[2], step.q.dtype.itemsize)
    return in_large_tile(with_descriptors(tile))


def assert_same(step, options=PLAIN, near=None):
    """The step is on the CPU; its pools hold NaN wherever nothing may be read."""
    assert_as_reference(there(step).run(by_descriptors(step), options), step, options, near)


def drawn(seed):
    """A random step of decode rows and chunks, some on one trunk, on pages that a tile fits."""
    draw = random.Random(seed)
    page, trunk = draw.choice(sized([64, 128], [64])), draw.choice([0, 0, 2])
    longest, most = sized((900, 12), (150, 2))
    kinds = [(trunk * page + draw.randint(1, longest), 1) for _ in range(draw.randint(1, most))]
    lengths = draw.choices(range(40, longest), k=draw.randint(1, sized(3, 1)))
    kinds += [(trunk * page + length, draw.randint(30, length)) for length in lengths]
    kv_heads, group = draw.choice(sized([1, 2, 8], [1])), draw.choice([1, 4, 8])
    head_dim = draw.choice(sized([64, 128, 256], [16, 64]))
    return make_step(kinds, kv_heads * group, kv_heads, head_dim, BF16,
                     page=page, trunk=trunk, splits=draw.choice([1, 16]), seed=seed)  # fmt: skip


@pytest.mark.parametrize("seed", range(sized(30, 3)))
def test_random_steps(seed):
    assert_same(drawn(seed))


@pytest.mark.parametrize("seed", range(30, sized(40, 32)))
def test_random_steps_with_options(seed):
    window = random.Random(seed).randint(1, sized(400, 60))
    assert_same(drawn(seed), AttentionOptions(window=window, soft_cap=20.0))


def test_fp8_pools():
    kinds = sized([(900, 1), (500, 200)], [(90, 1), (100, 40)])
    step = make_step(kinds, 8, 2, sized(128, 64), BF16, page=64, stored=FP8)
    assert_same(step, AttentionOptions(k_scale=0.5, v_scale=2.0), near=6e-2)


@on_a_gpu
def test_a_recorded_launch_keeps_its_descriptors():
    """The pools are filled after the recording: it must read them, not what they held."""
    full = there(make_step([(400, 130), (90, 1)], 8, 2, 128, BF16, page=64))
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
    near = TOLERANCE[BF16]
    torch.testing.assert_close(out, full.run(reference), atol=near, rtol=near)
