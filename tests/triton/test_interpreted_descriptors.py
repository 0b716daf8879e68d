"""Keys and values through tensor descriptors give the results of the reference, too.

A descriptor brings whole tiles, also the slots that nobody owns: these hold NaN, which spreads.
"""

import pytest
import torch
from steps import TOLERANCE, assert_as_reference, in_large_tile, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.launch import compute_capability
from ramify.kernels.triton.tiles import Tile, can_describe

TILE = Tile(rows=32, keys=16, warps=4, stages=2, descriptors=True)
MIXED = [(1, 1), (33, 1), (5, 5), (80, 20), (130, 40), (16, 16)]


def assert_same(step, options=PLAIN, *, near=None):
    _, _, page, head_dim = step.k_pool.shape
    assert can_describe(TILE, compute_capability(), page, head_dim)
    assert_as_reference(step.run(in_large_tile(TILE), options), step, options, near)


@pytest.mark.parametrize("page", [16, 48])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ragged_chunks(dtype, page):
    """A tile is a page, or a third of one; most chunks end within a tile."""
    assert_same(make_step(MIXED, 6, 2, 64, dtype, page=page))


@pytest.mark.parametrize("head_dim", [16, 128, 256])
def test_heads_of_other_sizes(head_dim):
    assert_same(make_step([(50, 20), (40, 9)], 4, 2, head_dim, torch.bfloat16))


@pytest.mark.parametrize("start", [14, 15, 16, 30, 31, 32])
def test_a_chunk_that_begins_at_the_edge_of_a_tile(start):
    assert_same(make_step([(start + 20, 20)], 4, 2, 16, torch.float32))


@pytest.mark.parametrize("window", [1, 7, 40])
def test_a_window(window):
    options = AttentionOptions(window=window)
    step = make_step([(150, 100), (60, 9)], 4, 2, 16, torch.float32)
    assert_same(step, options)
    assert not torch.allclose(step.run(reference, options), step.run(reference), atol=1e-3)


def test_a_soft_cap():
    step = make_step(MIXED, 4, 2, 16, torch.float32)
    step.q *= 4
    assert_same(step, AttentionOptions(soft_cap=2.0))


def test_a_trunk_that_many_share():
    """21 pairs on the trunk: its items are large ones, though each request decodes one token."""
    step = make_step([(70 + 9 * i, 1) for i in range(7)], 9, 3, 64, torch.bfloat16, trunk=4)
    assert step.work.n_partials == 14
    assert_same(step)


def test_prefill_on_a_trunk():
    assert_same(make_step([(110, 30), (90, 1), (100, 9)], 6, 2, 64, torch.bfloat16, trunk=4))


def test_fp8_keys_and_values():
    step = make_step(MIXED, 6, 2, 64, torch.bfloat16, stored=FP8)
    assert_same(step, AttentionOptions(k_scale=0.5, v_scale=3.0), near=6e-2)


@pytest.mark.parametrize(("page", "head_dim"), [(16, 80), (16, 8), (24, 16)])
def test_what_a_descriptor_cannot_bring_comes_by_pointers(page, head_dim):
    step = make_step(MIXED, 4, 2, head_dim, torch.bfloat16, page=page)
    assert not can_describe(TILE, compute_capability(), page, head_dim)
    near = TOLERANCE[torch.bfloat16]
    mine, oracle = step.run(in_large_tile(TILE)), step.run(reference)
    torch.testing.assert_close(mine, oracle, atol=near, rtol=near)
