"""Scheduler and runner as one: all of an engine but its loop and its sockets.

`building.build_core` makes one from the options.
"""

import dataclasses
import logging

from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.key import as_tokens
from ramify.srt.clock import Clock
from ramify.srt.constrained.base import CompiledGrammar
from ramify.srt.constrained.manager import GrammarManager
from ramify.srt.errors import RequestError
from ramify.srt.execution.model_runner import Pending, Runner
from ramify.srt.ids import FinishReason
from ramify.srt.messages import (
    EngineStats,
    ModelInfo,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Submit,
    ToFrontend,
    TreeNode,
    TreeShown,
    Unpin,
    rejected,
)
from ramify.srt.scheduling import answers
from ramify.srt.scheduling.plan import StepPlan
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.workers.compiling import Compiling

logger = logging.getLogger(__name__)

WAIT_S = 0.005  # how long an engine that waits for pages or grammars does not look for messages
BACK_UP_S = 4.0  # for writing, at the end, what would be lost
BAD_IDS = "token_ids must hold 4 bytes for each token"


class EngineCore:
    """Decide, do, learn: `step` is one turn of it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: ModelInfo,
        clock: Clock,
        *,
        overlap: bool = False,
        files: FileWorker | None = None,
        grammars: GrammarManager | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.info = info
        self._clock = clock
        self._overlap = overlap  # whether one step runs while the next is planned: this one
        self._in_flight: tuple[StepPlan, Pending] | None = None
        self._files = files
        self._compiling = Compiling(grammars, info.reasoning_parser)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and self._in_flight is None and not self._compiling

    def submit(self, message: Submit, now: float) -> Rejected | None:
        """Take a request, or say why not. It may be refused later too, by its grammar."""
        if message.grammar is None:
            return self.scheduler.submit(message, now)
        settled = self._compiling.hold(message, now)
        return None if settled is None else self._admit(*settled)

    def _admit(
        self, message: Submit, arrived: float, outcome: CompiledGrammar | RequestError
    ) -> Rejected | None:
        if isinstance(outcome, RequestError):
            return rejected(message, outcome)
        return self.scheduler.submit(message, arrived, outcome)

    def abort(self, request_id: str, now: float) -> list[ToFrontend]:
        """End a request, wherever it is. Unknown ids are ignored."""
        held = self._compiling.take_back(request_id)
        if held is not None:
            return [answers.unstarted(held[0], FinishReason.ABORT, now - held[1])]
        return self.scheduler.abort(request_id, now)

    def flush(self) -> bool:
        return not self._compiling and self.scheduler.flush()

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]:
        """Counters, and with `check` broken invariants in words: reported, never fatal."""
        violations = self.scheduler.violations() if check else []
        for violation in violations:
            logger.error("invariant broken: %s", violation)
        return self.scheduler.stats(), violations

    def pin(self, message: Pin, now: float) -> Pinned:
        """Keep what is computed of a prefix for a time, or say why not."""
        if len(message.token_ids) % 4:
            return Pinned(message.call_id, 0, BAD_IDS)
        key = as_tokens(message.token_ids)
        pinned = self.scheduler.cache.pin(message.namespace, key, now, message.ttl_s)
        return Pinned(message.call_id, *pinned)

    def unpin(self, message: Unpin, now: float) -> Pinned:
        """Give up a pin that was made with exactly these tokens."""
        if len(message.token_ids) % 4:
            return Pinned(message.call_id, 0, BAD_IDS)
        key = as_tokens(message.token_ids)
        return Pinned(message.call_id, self.scheduler.cache.unpin(message.namespace, key))

    def show_tree(self, message: ShowTree) -> TreeShown:
        """The nodes of the tree, most recently used first."""
        total, nodes = self.scheduler.cache.snapshot(message.limit)
        shown = [TreeNode(**dataclasses.asdict(node)) for node in nodes]
        return TreeShown(message.call_id, total, shown)

    def step(self) -> list[ToFrontend]:
        """End what is too late, then one step, if there is anything to compute.

        With overlap, a step is launched, and then the one launched before it is waited for. Returns
        what the frontends are to be told.
        """
        self._learn_of_files()
        now = self._clock.now()
        replies = self._learn_of_grammars(now)
        replies += self.scheduler.expire(now)
        plan = self.scheduler.plan(now)
        launched = None if plan is None else (plan, self.runner.launch(plan))
        if self._overlap:
            launched, self._in_flight = self._in_flight, launched
        if launched is not None:
            done, pending = launched
            replies += self.scheduler.apply(done, pending.result(), self._clock.now())
        elif plan is None:
            self._wait()
        return replies

    def _wait(self) -> None:
        """Nothing can be computed: if that is for want of pages or grammars, wait for some."""
        if self._compiling:
            self._compiling.wait(WAIT_S)
        elif self._files is not None and not self.scheduler.idle:
            self._files.wait(WAIT_S)

    def _learn_of_grammars(self, now: float) -> list[ToFrontend]:
        replies: list[ToFrontend] = [
            answers.unstarted(message, FinishReason.TIMEOUT, now - arrived)
            for message, arrived in self._compiling.late(now)
        ]
        refused = [self._admit(*settled) for settled in self._compiling.settled()]
        return replies + [reply for reply in refused if reply is not None]

    def close(self) -> None:
        """Keep on disk what fits in the time, and let the disk go. Nothing runs any more."""
        self._compiling.close()
        if self._files is None:
            return
        until = self._clock.now() + BACK_UP_S
        while self._clock.now() < until and (plan := self.scheduler.back_up()) is not None:
            self.runner.launch(plan).result()
            self._files.wait(WAIT_S)
            self._learn_of_files()
        self._files.close()

    def _learn_of_files(self) -> None:
        if self._files is not None:
            for done in self._files.poll():
                self.scheduler.file_done(done)
