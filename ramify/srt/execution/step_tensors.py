"""A step plan as tensors: which rows exist, where they write, what they read, which are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ramify.kernels.work_list import make_work_list
from ramify.srt.attention.inputs import StepInputs
from ramify.srt.attention.row_items import row_items
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.scheduling.plan import Chunk


@dataclass(frozen=True)
class StepTensors:
    """Inputs of the model, and the rows of its output that are wanted.

    Wanted rows come in plan order: for each chunk its target rows, then its sampled row.
    """

    inputs: StepInputs
    wanted_rows: Tensor  # [W] int64


def step_tensors(
    chunks: Sequence[Chunk],
    page_size: int,
    *,
    share: bool = True,
    min_items: int = 1,
    programs: int = 0,
    rows_apart: bool = False,
) -> StepTensors:
    """Lay the chunks of a plan out one after the other.

    For `share`, `min_items` and `programs` see `plan_items`; with `rows_apart` the work list is
    that of `row_items`.
    """
    ids, positions, slots = [], [], []
    wanted: list[int] = []
    runs: list[QueryRun] = []
    first_row = 0
    for chunk in chunks:
        n = len(chunk.tokens)
        where = np.arange(chunk.start, chunk.start + n)
        pages = np.array(chunk.pages)
        ids.append(np.frombuffer(chunk.tokens, dtype=np.uint32))
        positions.append(where)
        slots.append(pages[where // page_size] * page_size + where % page_size)
        runs.append(QueryRun(first_row, n, chunk.start, chunk.pages))
        first_target = first_row + chunk.first_target_row
        wanted += range(first_target, first_target + len(chunk.targets))
        first_row += n
        if chunk.samples:
            wanted.append(first_row - 1)
    where = np.concatenate(positions)
    if rows_apart:
        work = row_items(runs)
    else:
        items = plan_items(runs, page_size, share=share, min_items=min_items, programs=programs)
        work = make_work_list(items.items, items.rows, where.tolist(), items.pages)
    inputs = StepInputs(
        token_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        positions=work.positions,
        slots=torch.from_numpy(np.concatenate(slots)),
        work=work,
    )
    return StepTensors(inputs, torch.tensor(wanted, dtype=torch.int64))
