"""The attention kernels against the reference, on small ragged steps in the interpreter.

Pages outside the work list, and unused slots of the pages in it, hold NaN: a kernel that reads one
of them cannot pass, because NaN spreads.
"""

import math
from dataclasses import replace

import pytest
import torch
from steps import TOLERANCE, Step, assert_as_reference, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.reference.attention import merge
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.attention import attend_items, paged_attention
from ramify.kernels.triton.merge import merge_partials
from ramify.radix_cache.kv_pool import untouched

MIXED = [(1, 1), (16, 1), (33, 1), (5, 5), (80, 20), (130, 40)]
SHAPES = [
    (2, 2, 64, torch.bfloat16),
    (3, 1, 80, torch.bfloat16),
    (3, 1, 80, torch.float32),
    (6, 2, 96, torch.float16),
    (8, 1, 128, torch.bfloat16),
    (2, 1, 256, torch.bfloat16),
    (2, 1, 8, torch.float32),
]


def assert_same(step, options=PLAIN):
    assert_as_reference(step.run(paged_attention, options), step, options)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "dtype"), SHAPES)
def test_decode_and_prefill_rows_mixed(heads, kv_heads, head_dim, dtype):
    assert_same(make_step(MIXED, heads, kv_heads, head_dim, dtype))


@pytest.mark.parametrize("page", [5, 16, 64, 128])
def test_any_page_size(page):
    """Pages smaller than a tile, equal to it, larger, and none that divides another."""
    assert_same(make_step(MIXED, 4, 2, 16, torch.bfloat16, page=page))


@pytest.mark.parametrize("start", [30, 31, 32, 62, 63, 64])
def test_a_chunk_that_begins_at_the_edge_of_a_tile(start):
    """A tile is read without masks only if its last key is before all of the chunk's rows."""
    assert_same(make_step([(start + 20, 20)], 4, 2, 16, torch.float32, page=64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("requests", [2, 7])
def test_a_trunk_is_read_once_and_merged(requests, dtype):
    """Two requests make a small tile of the trunk, seven a large one."""
    kinds = [(70 + 9 * i, 1) for i in range(requests)]
    step = make_step(kinds, 9, 3, 64, dtype, trunk=4)
    assert step.work.n_partials == 2 * requests
    assert_same(step)


def test_prefill_and_decode_share_a_trunk():
    assert_same(make_step([(150, 30), (90, 1), (100, 3)], 6, 2, 64, torch.bfloat16, trunk=4))


def test_long_runs_are_split_and_merged():
    step = make_step([(700, 1)], 3, 1, 64, torch.float32, page=64, splits=3)
    assert len(step.work.items) == 3
    assert_same(step)


def test_rows_without_partials_keep_their_result():
    """One request is too short for the trunk that the others share."""
    step = make_step([(90, 1), (80, 3), (30, 2)], 4, 2, 16, torch.float32, trunk=4)
    assert 0 in step.work.merge_indptr.diff()
    assert step.work.n_partials > 0
    assert_same(step)


@pytest.mark.parametrize("unseen", [0, 3, 8, 9])
def test_partials_are_merged_eight_at_a_time(unseen):
    """Some saw nothing: if those are the first eight, the running maximum is -inf after them."""
    n = 12
    partial, lse = torch.randn(n, 2, 256), torch.randn(n, 2)
    lse[:unseen] = -torch.inf
    partial[:unseen] = 0
    work = make_step([(1, 1)], 2, 2, 8, torch.float32).work
    indptr, index = torch.tensor([0, n]).int(), torch.arange(n).int()
    work = replace(work, merge_indptr=indptr, merge_index=index, n_partials=n)
    out = torch.full((1, 2, 256), torch.nan)
    merge_partials(partial, lse / math.log(2), work, out)
    torch.testing.assert_close(out[0], merge(partial, lse), atol=1e-5, rtol=1e-5)


def test_rows_that_see_nothing_of_an_item_weigh_nothing():
    """Keys in two items for all rows, the second beyond the limit of the first rows."""
    step = make_step([(64, 40)], 4, 2, 16, torch.float32, page=16)
    items = torch.tensor([[0, 40, 0, 0, 48, 0], [0, 40, 3, 48, 16, 40]], dtype=torch.int32)
    index = torch.arange(80, dtype=torch.int32).view(2, 40).t().flatten()
    work = replace(
        step.work,
        items=items,
        merge_indptr=2 * torch.arange(41, dtype=torch.int32),
        merge_index=index.contiguous(),
        n_partials=80,
        total_rows=80,
    )
    assert_same(replace(step, work=work))


def test_items_without_rows_fill_a_list():
    """What makes a launch of fixed size: the result is that of the list without them."""
    step = make_step([(40, 1), (20, 1), (50, 30)], 4, 2, 16, torch.float32)
    filler = torch.zeros(130, 6, dtype=torch.int32)
    items = torch.cat((filler, step.work.items, filler))
    padded = replace(step, work=replace(step.work, items=items))
    assert torch.equal(padded.run(paged_attention), step.run(paged_attention))


@pytest.mark.parametrize("window", [1, 7, 64, 100])
@pytest.mark.parametrize("page", [16, 64])
def test_a_window(window, page):
    options = AttentionOptions(window=window)
    step = make_step([(300, 1), (200, 150), (9, 9)], 4, 2, 16, torch.float32, page=page)
    assert_same(step, options)
    plain = step.run(reference)
    assert not torch.allclose(step.run(reference, options), plain, atol=1e-3)


def test_a_soft_cap():
    options = AttentionOptions(soft_cap=2.0)
    step = make_step(MIXED, 4, 2, 16, torch.float32)
    step.q *= 4
    assert_same(step, options)
    assert not torch.allclose(step.run(reference, options), step.run(reference), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp8_keys_and_values(dtype):
    options = AttentionOptions(k_scale=0.5, v_scale=3.0)
    step = make_step(MIXED, 6, 2, 80, dtype, stored=FP8)
    mine, oracle = step.run(paged_attention, options), step.run(reference, options)
    assert not oracle.isnan().any()
    torch.testing.assert_close(mine.float(), oracle.float(), atol=6e-2, rtol=2e-2)


def test_large_scores_do_not_overflow():
    step = make_step([(100, 40)], 4, 2, 16, torch.float32)
    step.q *= 1e3  # scores of some thousands: exp of them is infinite in fp32
    torch.testing.assert_close(step.run(paged_attention), step.run(reference), atol=1e-2, rtol=1e-2)


def test_pools_of_more_than_two_to_the_31_elements():
    """The pages in use are the last of a pool too large for 32 bits; the rest is never touched."""
    step = make_step([(40, 1), (90, 30)], 4, 2, 64, torch.bfloat16, page=64)
    n_pages, *page = step.k_pool.shape
    offset = 2**31 // step.k_pool[0].numel() + 1
    pools = [untouched((offset + n_pages, *page), torch.bfloat16) for _ in range(2)]
    for pool, small in zip(pools, (step.k_pool, step.v_pool), strict=True):
        pool[offset:] = small
    work = replace(step.work, pages=step.work.pages + offset)
    assert_same(Step(step.q, *pools, work))
    assert torch.equal(Step(step.q, *pools, work).run(paged_attention), step.run(paged_attention))


def guarded(*shape, dtype=torch.float32):
    """A tensor between two rows of NaN, and what it lies in."""
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype)
    return whole[1:-1], whole


def test_nothing_is_written_beyond_the_results():
    step = make_step([(190, 1), (80, 1), (105, 30)], 3, 1, 80, torch.bfloat16, trunk=4)
    n = step.work.n_partials
    out, whole_out = guarded(*step.q.shape, dtype=torch.bfloat16)
    partial, whole_partial = guarded(n, 3, 80)
    lse, whole_lse = guarded(n, 3)
    scale = 80**-0.5
    attend_items(step.q, step.k_pool, step.v_pool, step.work, scale, PLAIN, out, partial, lse)
    merge_partials(partial, lse, step.work, out)
    for whole in (whole_out, whole_partial, whole_lse):
        assert whole[0].isnan().all()
        assert whole[-1].isnan().all()
        assert not whole[1:-1].isnan().any()
    near = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(out, step.run(reference), atol=near, rtol=near)


def test_wrong_sizes_are_named():
    step = make_step([(40, 3)], 4, 2, 16, torch.float32)
    with pytest.raises(ValueError, match="v_pool must be"):
        replace(step, v_pool=step.v_pool[1:]).run(paged_attention)
    with pytest.raises(ValueError, match="multiple of K/V heads"):
        replace(step, q=step.q[:, :3].contiguous()).run(paged_attention)
