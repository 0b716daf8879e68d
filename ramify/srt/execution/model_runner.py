"""Carries out step plans: the only place that computes.

launch(plan) -> Pending      moves, one forward pass over all chunks, logits of wanted rows
Pending.result()             tokens and log-probabilities, in the order of the plan's chunks

`Ahead` does the same on a thread of its own, one plan after the other, so that `launch` returns at
once:

    main      plan 1  launch | plan 2  launch | wait 1  apply 1 | plan 3  launch | wait 2 ...
    thread                   [ step 1                 ][ step 2                      ][ step 3 ...
"""

from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ramify.kernels.ops import Ops
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.page_mover import PageMover
from ramify.srt.constrained.base import Matcher
from ramify.srt.execution.drawing import Sampled, draw
from ramify.srt.execution.logprobs import token_logprobs
from ramify.srt.execution.masks import MaskFiller, Masks
from ramify.srt.execution.sampling_rows import SamplingRow
from ramify.srt.execution.step_tensors import step_tensors
from ramify.srt.messages import TokenLogprob
from ramify.srt.models.llama import LlamaModel
from ramify.srt.scheduling.plan import Chunk, ChunkResult, StepPlan, StepResult


class Pending(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Wait for it. Raises what it raised."""
        ...


class Runner(Protocol):
    """What carries out plans, in the order in which they are launched."""

    def launch(self, plan: StepPlan) -> Pending: ...


@dataclass(frozen=True)
class Done:
    """A step that was over when `launch` returned."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value


@contextmanager
def _torch_threads(ops: Ops) -> Iterator[None]:
    """Keep torch to one thread beside the C++ kernels, which have helpers of their own.

    Its threads would go on spinning after every operation, on the cores that the helpers need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if ops.backend == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ModelRunner:
    """A model, its KV pool, and the sampling state of the requests that run.

    `deterministic` gives every token an attention item of its own, from key 0 on: then no bit of a
    row depends on the rows beside it, as no other op mixes rows.
    """

    def __init__(
        self,
        model: LlamaModel,
        pool: KvPool,
        eos_token_ids: tuple[int, ...],
        *,
        mover: PageMover | None = None,
        deterministic: bool = False,
    ) -> None:
        self.model = model
        self.pool = pool
        self._mover = mover or PageMover(pool)
        self._eos_token_ids = eos_token_ids
        self._rows: dict[str, SamplingRow] = {}
        self._masks = MaskFiller(model.config.vocab_size)
        self._share = not deterministic
        self._min_items = 1 if deterministic else 2 * torch.get_num_threads()

    def launch(self, plan: StepPlan) -> Done:
        """Carry out a plan, in the order that StepPlan states."""
        with torch.inference_mode(), _torch_threads(self.model.ops):
            return Done(self._run(plan))

    def _run(self, plan: StepPlan) -> StepResult:
        for request_id in plan.leaves:
            del self._rows[request_id]
        for enter in plan.enters:
            vocab_size = self.model.config.vocab_size
            self._rows[enter.request_id] = SamplingRow(enter, vocab_size, self._eos_token_ids)
        self._mover.carry_out(plan.moves)
        if not plan.chunks:
            return StepResult(())
        step = step_tensors(
            self._known(plan.chunks),
            self.pool.page_size,
            share=self._share,
            min_items=self._min_items,
        )
        masks = self._masks.fill(self._matchers(plan))
        hidden = self.model.forward(step.inputs, self.pool)
        if not len(step.wanted_rows):
            return StepResult(tuple(ChunkResult(None) for _ in plan.chunks))
        logits = self.model.logits(hidden[step.wanted_rows])
        return self._results(plan, logits, masks)

    def _matchers(self, plan: StepPlan) -> list[Matcher]:
        """Of the constrained rows that are sampled, in plan order."""
        rows = [self._rows[chunk.request_id] for chunk in plan.chunks if chunk.samples]
        return [row.matcher for row in rows if row.matcher is not None]

    def _known(self, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        """The chunks with the tokens that were not known when they were planned."""
        return tuple(
            replace(chunk, tokens=array("I", [self._rows[chunk.request_id].last_token]))
            if chunk.follows
            else chunk
            for chunk in chunks
        )

    def _results(self, plan: StepPlan, logits: Tensor, masks: Masks | None) -> StepResult:
        """Split the wanted rows between target scores and sampling, chunk by chunk."""
        scores: list[tuple[TokenLogprob, ...]] = []
        sampled_rows: list[int] = []
        at = 0
        for chunk in plan.chunks:
            n = len(chunk.targets)
            top = self._rows[chunk.request_id].top_logprobs
            scores.append(token_logprobs(logits[at : at + n], chunk.targets, top))
            at += n
            if chunk.samples:
                sampled_rows.append(at)
                at += 1
        wanted = [
            Sampled(self._rows[chunk.request_id], chunk.max_forced)
            for chunk in plan.chunks
            if chunk.samples
        ]
        drawn = iter(draw(self.model.ops, wanted, logits[sampled_rows], masks) if wanted else ())
        return StepResult(
            tuple(
                replace(next(drawn) if chunk.samples else ChunkResult(None), target_logprobs=score)
                for chunk, score in zip(plan.chunks, scores, strict=True)
            )
        )


class Ahead:
    """A runner on a thread of its own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramify-runner")

    def launch(self, plan: StepPlan) -> Pending:
        """Carry out a plan when those launched before it are done."""
        pending: Future[StepResult] = self._thread.submit(self._carry_out, plan)
        return pending

    def _carry_out(self, plan: StepPlan) -> StepResult:
        return self._runner.launch(plan).result()
