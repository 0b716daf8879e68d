"""Small ragged steps for attention, planned as the engine plans, with NaN where nobody reads."""

import random
from dataclasses import dataclass

import torch

from ramify.kernels.attention_options import PLAIN
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.triton.attention import attend_items
from ramify.kernels.triton.merge import merge_partials
from ramify.kernels.triton.tile_table import default_tiles
from ramify.kernels.work_list import WorkList, check, make_work_list
from ramify.srt.attention.work_list import QueryRun, plan_items

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass
class Step:
    q: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    work: WorkList

    def run(self, paged_attention, options=PLAIN):
        scale = self.q.shape[2] ** -0.5
        return paged_attention(self.q, self.k_pool, self.v_pool, self.work, scale, options)


def runs_of(kinds, page, trunk=0, seed=0):
    """Query runs (length, queries) on shuffled pages; the first `trunk` pages belong to all."""
    ids = list(range(1, 2000))
    random.Random(seed).shuffle(ids)
    shared = tuple(ids.pop() for _ in range(trunk))
    runs, row = [], 0
    for length, queries in kinds:
        own = tuple(ids.pop() for _ in range(-(-length // page) - trunk))
        runs.append(QueryRun(row, queries, length - queries, shared + own))
        row += queries
    return runs


def renumbered(runs):
    """The runs on the pages 1, 2, .., in the order of their first numbers: pools stay small."""
    used = sorted({number for run in runs for number in run.pages})
    new = {number: i + 1 for i, number in enumerate(used)}
    return [
        QueryRun(r.first_row, r.n_rows, r.start, tuple(new[p] for p in r.pages)) for r in runs
    ], len(used) + 2


def make_step(kinds, heads, kv_heads, head_dim, dtype, *, page=16, trunk=0, splits=1, seed=0,
              stored=None):  # fmt: skip
    """A step whose pools hold NaN in every slot that no run owns."""
    generator = torch.Generator().manual_seed(seed)
    runs, n_pages = renumbered(runs_of(kinds, page, trunk, seed))
    planned = plan_items(runs, page, min_items=splits)
    positions = [p for run in runs for p in range(run.start, run.start + run.n_rows)]
    work = make_work_list(planned.items, planned.rows, positions, planned.pages)
    check(work, n_pages, page)
    pools = []
    for _ in range(2):
        pool = torch.full((n_pages, kv_heads, page, head_dim), torch.nan)
        for run in runs:
            length = run.start + run.n_rows
            for i, number in enumerate(run.pages):
                used = max(min(page, length - i * page), 0)
                pool[number, :, :used] = torch.randn(kv_heads, used, head_dim, generator=generator)
        pools.append(pool.to(stored or dtype))
    q = torch.randn(len(positions), heads, head_dim, generator=generator).to(dtype)
    return Step(q, *pools, work)


def assert_as_reference(out, step, options=PLAIN, near=None):
    """`out` is what the reference gives for the step, which is on the CPU."""
    oracle = step.run(reference, options)
    assert not oracle.isnan().any()
    near = near or TOLERANCE[step.q.dtype]
    torch.testing.assert_close(out.cpu().float(), oracle.float(), atol=near, rtol=near)


def in_large_tile(tile):
    """`paged_attention` whose items of many rows are worked on in this tile."""

    def paged_attention(q, k_pool, v_pool, work, scale, options=PLAIN):
        heads, head_dim = q.shape[1:]
        out = torch.full_like(q, torch.nan)
        partial = out.new_full((work.n_partials, heads, head_dim), torch.nan, dtype=torch.float32)
        lse = out.new_full((work.n_partials, heads), torch.nan, dtype=torch.float32)
        attend_items(
            q, k_pool, v_pool, work, scale, options, out, partial, lse,
            tiles_of=lambda shape: default_tiles(shape)._replace(large=tile),
        )  # fmt: skip
        merge_partials(partial, lse, work, out)
        return out

    return paged_attention
