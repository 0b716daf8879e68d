"""A work list in which every query is an item of its own, for deterministic mode on a GPU.

An item is then what one program of the kernel computes: a row against all its keys, from the first
to its own. Nothing else in the step is in that program, so no bit of its result depends on whether
the row came with a prompt, with a piece of one, or alone; and no partial results need an order.

The keys are read once for each row, where a prompt's rows could share them, and a long context has
one program for each K/V head, however idle the rest of the GPU is. Pieces at fixed places would
keep more of it busy, but a prompt's partial results would grow with the square of its length.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ramify.kernels.work_list import DIRECT, WorkList
from ramify.srt.attention.work_list import QueryRun


def row_items(runs: Sequence[QueryRun]) -> WorkList:
    """An item for each query of the runs, which lie one after the other from row 0 on."""
    n_rows = [run.n_rows for run in runs]
    first_page = np.cumsum([0, *(len(run.pages) for run in runs)])[:-1]
    positions = np.concatenate([np.arange(run.start, run.start + run.n_rows) for run in runs])
    items = np.zeros((sum(n_rows), 6), np.int32)
    items[:, 0] = np.arange(len(items))
    items[:, 1] = 1
    items[:, 2] = np.repeat(first_page, n_rows)
    items[:, 4] = positions + 1
    items[:, 5] = DIRECT
    pages = np.concatenate([np.array(run.pages, np.int32) for run in runs])
    return WorkList(
        items=torch.from_numpy(items),
        rows=torch.arange(len(items), dtype=torch.int32),
        positions=torch.from_numpy(positions.astype(np.int32)),
        pages=torch.from_numpy(pages),
        merge_indptr=torch.zeros(len(items) + 1, dtype=torch.int32),
        merge_index=torch.zeros(0, dtype=torch.int32),
        n_partials=0,
        max_rows=1,
        total_rows=len(items),
    )
