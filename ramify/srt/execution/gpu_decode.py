"""Decode steps of fixed size over the device's tables: recorded once, replayed with new blocks.

    block of the step --copy--> static words        (only when the batch has changed)
    forward   rows -> last tokens, positions, slots -> model -> logits   (static)
    sample    logits -> tokens (static), last_token, position

Between the two, logits may be changed. The pool's last page is the spare row's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.kernels.work_list import WorkList
from ramify.radix_cache.kv_pool import KvPool
from ramify.srt.attention.inputs import StepInputs
from ramify.srt.execution.device import Device
from ramify.srt.execution.device_state import DeviceState
from ramify.srt.execution.gpu_sampling import draw_tokens
from ramify.srt.execution.graph_buckets import (
    ITEM_WORDS,
    DecodeRow,
    Layout,
    bucket_of,
    decode_block,
    layout,
    spare_block,
)
from ramify.srt.execution.graphs import Graphs, Replay
from ramify.srt.models.llama import LlamaModel

PLAN_AGAIN = 64  # steps after which an unchanged batch is cut into pieces anew: rows have grown


@dataclass(frozen=True)
class _Recorded:
    """One size of decode step, with items of one row or of several."""

    words: Tensor
    forward: Replay
    sample: Replay


class DecodeSteps:
    """All sizes of decode step of one model. Sizes are recorded when they are made: largest first.

    Recordings share `logits` and `tokens`: no two steps run at the same time. With `rows_apart`
    every row is an item of its own. Raises ValueError for FlashInfer, which would not see that the
    list of a recording has changed.
    """

    def __init__(
        self,
        device: Device,
        graphs: Graphs,
        model: LlamaModel,
        pool: KvPool,
        state: DeviceState,
        sizes: Sequence[int],
        *,
        rows_apart: bool = False,
    ) -> None:
        if model.ops.backend == "flashinfer":
            raise ValueError("no decode step can be recorded with FlashInfer: it plans on the host")
        self._device = device
        self._graphs = graphs
        self._model = model
        self._pool = pool
        self._state = state
        self._sizes = sizes
        self._share = not rows_apart
        self._n_pieces = 0 if rows_apart else device.attention_pieces(model.config.n_kv_heads)
        largest, where = sizes[-1], device.torch_device
        self._logits = torch.zeros(largest, model.config.vocab_size, device=where)
        self._tokens = torch.zeros(largest, dtype=torch.int64, device=where)
        self._recorded: dict[tuple[int, bool], _Recorded] = {}
        for size in reversed(sizes):
            for shared in (False, True) if size > 1 and self._share else (False,):
                self._recorded[size, shared] = self._record(size, shared)
        self._of: tuple[int, ...] = ()  # whom the block in `_current` is for
        self._age = 0
        self._current = self._recorded[sizes[0], False]

    def fits(self, n: int) -> bool:
        """Whether a step of n rows can be one of these."""
        return n <= self._sizes[-1]

    def forward(self, admissions: tuple[int, ...], rows: Sequence[DecodeRow]) -> Tensor:
        """Compute the rows; their logits [n, V] fp32, valid until the next step.

        `admissions` say who the rows are. The same ones share and read the same keys as before,
        even if a page was replaced: by one that holds the same.
        """
        self._age += 1
        if admissions != self._of or self._age >= PLAN_AGAIN:
            self._load(rows)
            self._of, self._age = admissions, 0
        self._current.forward()
        return self._logits[: len(rows)]

    def sample(self, n: int) -> Tensor:
        """Draw a token for each of the n rows of the step just computed: [n] int64, or -1."""
        self._current.sample()
        return self._tokens[:n]

    def _load(self, rows: Sequence[DecodeRow]) -> None:
        size = bucket_of(len(rows), self._sizes)
        assert size is not None, "a step too large for any recording"
        tables, pieces = self._state.tables, self._n_pieces
        shared, words = decode_block(rows, size, tables, pieces, share=self._share)
        self._current = self._recorded[size, shared]
        self._current.words.copy_(self._device.upload(words))

    def _record(self, size: int, shared: bool) -> _Recorded:
        room = layout(size, self._n_pieces, shared=shared)
        words = self._device.upload(spare_block(room, self._state.tables))
        logits, tokens = self._logits[:size], self._tokens[:size]

        def forward() -> None:
            inputs = _inputs(self._state, words, room, size if shared else 1, self._pool.page_size)
            hidden = self._model.forward(inputs, self._pool)
            logits.copy_(self._model.logits(hidden))

        def sample() -> None:
            tokens.copy_(draw_tokens(self._model.ops, self._state, logits, words[:size]))

        static = words, logits, tokens, self._state.words, self._pool.keys, self._pool.values
        return _Recorded(
            words, self._graphs.capture(forward, static), self._graphs.capture(sample, static)
        )


def _inputs(
    state: DeviceState, words: Tensor, room: Layout, max_rows: int, page_size: int
) -> StepInputs:
    """The model's inputs out of a block and the device's tables."""
    rows, items, entries, indptr, index = (
        words[at : at + size] for at, size in zip(room.offsets, room.sizes, strict=False)
    )
    at = rows.long()
    positions = state.position[at]
    long = positions.long()
    page = state.page_table[at, long // page_size].long()
    work = WorkList(
        items=items.view(-1, ITEM_WORDS),
        rows=entries,
        positions=positions,
        pages=state.page_table.view(-1),
        merge_indptr=indptr,
        merge_index=index,
        n_partials=room.partials,
        max_rows=max_rows,
        total_rows=room.entries,
    )
    return StepInputs(
        token_ids=state.last_token[at].long(),
        positions=positions,
        slots=page * page_size + long % page_size,
        work=work,
    )
