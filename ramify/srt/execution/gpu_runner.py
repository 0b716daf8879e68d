"""Carries out step plans on a GPU: a step is launched, and its tokens are waited for later.

launch(plan)      host: changes of rows and pages into one upload; then, on the stream, in order
                  moves | forward | adjust, mask | draw | copies of tokens to the host | event
Pending.result()  waits for that event, then follows the grammars: in the order of the chunks

Steps in which every chunk is one row that samples are replays (`gpu_decode`); all others go through
the same model with tensors of their own. Either way the tokens of a step stay on the device for the
next one, so it may be launched before they are known: no thread is needed for that, as a stream
does one thing after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ramify.kernels.work_list import WorkList
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.page_mover import PageMover
from ramify.srt.attention.inputs import StepInputs
from ramify.srt.execution.device import Device, Fetched
from ramify.srt.execution.device_state import DeviceState
from ramify.srt.execution.drawing import NO_NUMBER, NO_WAY_ON, drawn
from ramify.srt.execution.gpu_decode import DecodeSteps
from ramify.srt.execution.gpu_sampling import (
    GpuRow,
    Histories,
    Wanted,
    adjust,
    adjust_nothing,
    draw_tokens,
    log_probabilities,
)
from ramify.srt.execution.graph_buckets import DecodeRow, Tables, bucket_sizes
from ramify.srt.execution.graphs import Graphs
from ramify.srt.execution.masks import MaskFiller, Masks
from ramify.srt.execution.model_runner import Done, Pending
from ramify.srt.execution.step_tensors import StepTensors, step_tensors
from ramify.srt.execution.warm_up import warm_up_steps
from ramify.srt.messages import TokenLogprob
from ramify.srt.models.llama import LlamaModel
from ramify.srt.scheduling.plan import Chunk, ChunkResult, StepPlan, StepResult

SCORED_AT_ONCE = 256  # rows whose logits are held at a time: half a gigabyte, of the largest
Scores = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Scored:
    """Rows of the step's scores: first those of the targets, then that of the sampled token."""

    n_targets: int
    sampled: bool
    top: int


@dataclass
class _Step:
    """A launched step: copies that are on their way, and what they are for."""

    wanted: list[Wanted]
    scored: list[_Scored]
    chunks: tuple[Chunk, ...]
    fetched: Fetched
    errors: dict[int, str] = field(default_factory=dict)  # by index in `wanted`

    def result(self) -> StepResult:
        """Wait for the copies, and let the grammars follow."""
        tokens, *scores = (tensor.tolist() for tensor in self.fetched.wait())
        logprobs = zip(*scores, strict=True) if scores else iter(())
        results, at = [], 0
        for chunk, scored in zip(self.chunks, self.scored, strict=True):
            targets = [_logprob(next(logprobs), t, scored.top) for t in chunk.targets]
            result = ChunkResult(None)
            if chunk.samples:
                news = TokenLogprob(None, max(tokens[at], 0))
                if scored.sampled:
                    news = _logprob(next(logprobs), news.token_id, scored.top)
                result = self._follow(at, tokens[at], news)
                at += 1
            results.append(replace(result, target_logprobs=tuple(targets)))
        return StepResult(tuple(results))

    def _follow(self, i: int, token: int, news: TokenLogprob) -> ChunkResult:
        item = self.wanted[i]
        row = item.row.grammar
        if i in self.errors:
            return ChunkResult(None, error=self.errors[i])
        if row.matcher is not None and token < 0:
            return ChunkResult(None, error=NO_NUMBER)
        result = drawn(row, news, item.max_forced)
        if result is None:
            return ChunkResult(None, error=NO_WAY_ON)
        item.row.uncounted += result.forced
        return result


def _logprob(score: tuple[float, list[float], list[int]], token: int, top: int) -> TokenLogprob:
    chosen, values, ids = score
    return TokenLogprob(chosen, token, list(zip(values[:top], ids[:top], strict=True)))


class GpuRunner:
    """A model and a pool on one device, and the state of at most `max_requests` that run.

    The pool has a page more than the cache gives out: the last one, for rows that fill up a step.
    Decode steps of up to `max_graph_rows` rows are recorded at once; with 0, none is. `max_pages`
    is the length of the longest page table. With `deterministic` every row has attention of its
    own: no bit of it depends on the rows beside it, if the model's ops keep `rows_apart`.
    """

    def __init__(
        self,
        device: Device,
        graphs: Graphs,
        model: LlamaModel,
        pool: KvPool,
        eos_token_ids: tuple[int, ...],
        *,
        max_requests: int,
        max_pages: int,
        max_graph_rows: int,
        mover: PageMover | None = None,
        deterministic: bool = False,
    ) -> None:
        self._device = device
        self._model = model
        self._pool = pool
        self._mover = mover or PageMover(pool)
        self._eos_token_ids = eos_token_ids
        self._rows: dict[str, GpuRow] = {}
        self._masks = MaskFiller(model.config.vocab_size)
        self._free = list(range(max_requests - 1, -1, -1))
        self._programs = device.attention_pieces(model.config.n_kv_heads)
        self._rows_apart = deterministic
        self._longest = min(model.config.context_length, max_pages * pool.page_size)
        with torch.inference_mode():
            tables = Tables(pool.page_size, max_pages, max_requests)
            self._state = DeviceState(device, max_requests, tables, pool.n_pages - 1)
            self._histories = Histories(device, max_requests, model.config.vocab_size)
            sizes = bucket_sizes(min(max_graph_rows, max_requests))
            self._decode = (
                DecodeSteps(
                    device, graphs, model, pool, self._state, sizes, rows_apart=deterministic
                )
                if sizes
                else None
            )

    def warm_up(self, step_tokens: int) -> None:
        """Compute every kind of step of at most so many tokens, so that no request waits for a
        compiler. They read and write the spare page, and change nothing else.

        Raises torch.OutOfMemoryError where the largest step has no room.
        """
        spare_page, spare_row = self._pool.n_pages - 1, self._state.tables.spare
        steps = warm_up_steps(step_tokens, self._longest, self._pool.page_size, spare_page)
        with torch.inference_mode():
            for chunks in steps:
                hidden = self._model.forward(self._inputs(chunks, self._step(chunks)), self._pool)
                n = min(len(hidden), SCORED_AT_ONCE)
                logits = self._model.logits(hidden[self._ints(range(n))])
                adjust_nothing(self._model.ops, self._device, logits)
                rows = self._device.upload(np.full(n, spare_row, np.int32))
                tokens = draw_tokens(self._model.ops, self._state, logits, rows)
            self._device.fetch((tokens,)).wait()

    def launch(self, plan: StepPlan) -> Pending:
        """Begin a plan, after those launched before it. Waits for nothing but the grammars' masks
        and moves to and from host memory."""
        with torch.inference_mode():
            self._change_rows(plan)
            self._mover.carry_out(plan.moves)
            if not plan.chunks:
                return Done(StepResult(()))
            return self._launch(plan.chunks)

    def _change_rows(self, plan: StepPlan) -> None:
        for request_id in plan.leaves:
            self._free.append(self._rows.pop(request_id).index)
        for enter in plan.enters:
            vocab_size = self._model.config.vocab_size
            row = GpuRow(self._free.pop(), enter, vocab_size, self._eos_token_ids)
            self._rows[enter.request_id] = row
            self._state.put_sampling(row.index, row.params)
            if row.params.penalised:
                self._histories.enter(row.index, enter)

    def _launch(self, chunks: tuple[Chunk, ...]) -> _Step:
        wanted = [
            Wanted(self._rows[c.request_id], c.start + len(c.tokens), c.max_forced)
            for c in chunks
            if c.samples
        ]
        matchers = [w.row.grammar.matcher for w in wanted if w.row.grammar.matcher is not None]
        for item in wanted:
            self._histories.count_forced(item.row)
        decode = self._decode
        if decode is not None and decode.fits(len(chunks)) and all(map(_is_decode, chunks)):
            logits, targets = self._forward_recorded(decode, chunks), None
        else:
            decode = None
            logits, targets = self._forward(chunks)
        scored = [_scored(self._rows[chunk.request_id], chunk) for chunk in chunks]
        asked = self._device.upload(np.flatnonzero(_asked(chunks, scored)))
        raw = logits[asked] if len(asked) else None  # as the model gave them, before any option
        masks = self._masks.fill(matchers)
        adjust(self._model.ops, self._device, logits, wanted, self._histories, masks)
        if decode is not None:
            tokens = decode.sample(len(wanted))
        else:
            rows = self._device.upload(np.array([w.row.index for w in wanted], np.int32))
            tokens = draw_tokens(self._model.ops, self._state, logits, rows)
        self._histories.note([w.row for w in wanted], tokens)
        top = max(item.top for item in scored)
        scores = self._target_scores(chunks, targets, top)
        if raw is not None:
            scores.append(log_probabilities(raw, tokens[asked], top))
        ordered = self._in_order(scored, scores)
        fetched = self._device.fetch((tokens, *ordered))
        return _Step(wanted, scored, chunks, fetched, _errors(wanted, masks))

    # --- forward ---------------------------------------------------------------------------------

    def _forward_recorded(self, decode: DecodeSteps, chunks: Sequence[Chunk]) -> Tensor:
        """Logits [n, V] of a step of single rows, after telling the device what has changed."""
        rows = []
        for chunk in chunks:
            row = self._rows[chunk.request_id]
            self._send_pages(row, chunk.pages)
            if row.position != chunk.start:
                self._state.put("position", row.index, chunk.start)
            if not chunk.follows:
                self._state.put("last_token", row.index, chunk.tokens[0])
            row.position = chunk.start + 1
            rows.append(DecodeRow(row.index, chunk.start, chunk.pages))
        self._state.flush()
        return decode.forward(tuple(chunk.admission for chunk in chunks), rows)

    def _send_pages(self, row: GpuRow, pages: tuple[int, ...]) -> None:
        """Change the device's page table into `pages`: mostly one more now and then."""
        n = len(row.pages)
        if pages[:n] != row.pages:
            n = 0
        if n < len(pages):
            self._state.put_pages(row.index, n, pages[n:])
        row.pages = pages

    def _forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor | None]:
        """Logits of the sampled rows [n, V], and hidden states of the target rows, if any."""
        for chunk in chunks:
            row = self._rows[chunk.request_id]
            if chunk.samples:  # as it is when the chunk's last row is computed
                self._state.put("position", row.index, chunk.start + len(chunk.tokens) - 1)
                row.position = chunk.start + len(chunk.tokens)
        self._state.flush()
        step = self._step(chunks)
        inputs = self._inputs(chunks, step)
        hidden = self._model.forward(inputs, self._pool)
        sampled, targets = _split(chunks, step)
        logits = torch.zeros(0, self._model.config.vocab_size, device=hidden.device)
        if sampled:
            logits = self._model.logits(hidden[self._ints(sampled)])
        return logits, hidden[self._ints(targets)] if targets else None

    def _step(self, chunks: Sequence[Chunk]) -> StepTensors:
        return step_tensors(
            chunks,
            self._pool.page_size,
            programs=self._programs,
            rows_apart=self._rows_apart,
        )

    def _ints(self, values: Sequence[int]) -> Tensor:
        return self._device.upload(np.array(values, np.int64))

    def _inputs(self, chunks: Sequence[Chunk], step: StepTensors) -> StepInputs:
        upload = self._device.upload
        given = step.inputs.token_ids.numpy()
        ids = upload(given)
        at, rows, first = [], [], 0
        for chunk in chunks:
            if chunk.follows:
                at.append(first)
                rows.append(self._rows[chunk.request_id].index)
            first += len(chunk.tokens)
        if at:  # their tokens are known on the device only
            last = self._state.last_token[upload(np.array(rows, np.int64))]
            ids[upload(np.array(at, np.int64))] = last.long()
        work = _uploaded(self._device, step.inputs.work)
        return StepInputs(ids, work.positions, upload(step.inputs.slots.numpy()), work)

    # --- log-probabilities -----------------------------------------------------------------------

    def _target_scores(
        self, chunks: Sequence[Chunk], hidden: Tensor | None, top: int
    ) -> list[Scores]:
        """Scores of the target rows: some at a time, as their logits are the most there is."""
        if hidden is None:
            return []
        tokens = self._ints([token for chunk in chunks for token in chunk.targets])
        pieces = torch.split(hidden, SCORED_AT_ONCE), torch.split(tokens, SCORED_AT_ONCE)
        return [
            log_probabilities(self._model.logits(some), wanted, top)
            for some, wanted in zip(*pieces, strict=True)
        ]

    def _in_order(self, scored: Sequence[_Scored], scores: Sequence[Scores]) -> Sequence[Tensor]:
        """The scores of all rows, targets first, chunk by chunk instead."""
        if not scores:
            return ()
        order: list[int] = []
        next_target, next_sampled = 0, sum(item.n_targets for item in scored)
        for item in scored:
            order += range(next_target, next_target + item.n_targets)
            next_target += item.n_targets
            if item.sampled:
                order.append(next_sampled)
                next_sampled += 1
        at = self._ints(order)
        return [torch.cat(parts)[at] for parts in zip(*scores, strict=True)]


def _asked(chunks: Sequence[Chunk], scored: Sequence[_Scored]) -> list[bool]:
    """Of the sampled rows: whether their log-probabilities are wanted."""
    return [item.sampled for chunk, item in zip(chunks, scored, strict=True) if chunk.samples]


def _is_decode(chunk: Chunk) -> bool:
    return len(chunk.tokens) == 1 and chunk.samples and not chunk.targets


def _scored(row: GpuRow, chunk: Chunk) -> _Scored:
    sampled = chunk.samples and row.return_logprob
    top = row.top_logprobs if sampled or chunk.targets else 0
    return _Scored(len(chunk.targets), sampled, top)


def _split(chunks: Sequence[Chunk], step: StepTensors) -> tuple[list[int], list[int]]:
    """The wanted rows of a step: those that are sampled, and those that score targets."""
    sampled, targets = [], []
    wanted = iter(step.wanted_rows.tolist())
    for chunk in chunks:
        targets += [next(wanted) for _ in chunk.targets]
        if chunk.samples:
            sampled.append(next(wanted))
    return sampled, targets


def _errors(wanted: Sequence[Wanted], masks: Masks | None) -> dict[int, str]:
    """Which of the wanted rows cannot be sampled, and why."""
    if masks is None:
        return {}
    constrained = [i for i, item in enumerate(wanted) if item.row.grammar.matcher is not None]
    pairs = zip(constrained, masks.errors, strict=True)
    return {i: error for i, error in pairs if error is not None}


def _uploaded(device: Device, work: WorkList) -> WorkList:
    """The work list, on the device, with what it was made of."""
    moved: dict[str, Any] = {
        name: device.upload(value.numpy())
        for name, value in vars(work).items()
        if isinstance(value, Tensor)
    }
    return replace(work, **moved, on_host=work)
