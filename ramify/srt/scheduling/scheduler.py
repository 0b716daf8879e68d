"""The whole decision: what each step computes, and what its result means. No torch, no clock.

    submit, abort    requests come and go, between steps
    expire           end what is past its deadline
    plan             grow decodes (retracting when pages run out), continue prefills, admit
    apply            fold a step's result: publish, append, finish

A step may be planned while the one before it runs: `plan` needs no result of the latest plan, only
of those before it. What ends or is retracted meanwhile is over at once, with pages and all: steps
are carried out in order, so whoever gets its pages writes them after it did, and nothing is
published before it is applied. The results of its chunks in flight are stale, and dropped.

Every accepted request is answered by exactly one Finished.
"""

from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.plans import FileDone
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.constrained.base import CompiledGrammar
from ramify.srt.ids import FinishReason
from ramify.srt.messages import EngineStats, Finished, Rejected, Submit, ToFrontend, TokenLogprob
from ramify.srt.scheduling import admission, answers, counters, pieces
from ramify.srt.scheduling.counters import Counters
from ramify.srt.scheduling.lazy_heap import LazyHeap
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import Chunk, ChunkResult, Enter, StepPlan, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.request import Event, Request, State
from ramify.srt.scheduling.waiting import WaitingQueue

BACK_UP_PAGES = 256  # begun at once


class Scheduler:
    """Owns the queue, the running requests and the prefix cache."""

    def __init__(self, limits: SchedulerLimits, cache: PrefixCache) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = POLICIES[limits.schedule_policy]
        self.waiting = WaitingQueue(self.policy, limits.starvation_bound, cache)
        self.running: dict[str, Request] = {}  # in order of admission
        self._timed: LazyHeap[Request] = LazyHeap(lambda request: request.deadline)
        self._leaves: list[str] = []  # for the next plan, as is the next
        self._enters: list[Enter] = []
        self._counters = Counters()

    # --- requests come and go --------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def submit(
        self, message: Submit, now: float, grammar: CompiledGrammar | None = None
    ) -> Rejected | None:
        """Take a request, or say why not. `grammar` is what became of `message.grammar`."""
        tokens = as_tokens(message.token_ids)
        max_new = message.sampling.max_new_tokens
        most = self.limits.context_length
        if message.request_id in self.waiting or message.request_id in self.running:
            return answers.refused(message, "InvalidRequest", "rid is in use already", "rid")
        full = self._queue_is_full(message.account, len(tokens))
        if full is not None:
            return answers.refused(message, "QueueFull", f"{full} already; try again later")
        if max_new is None or not tokens or len(tokens) + max_new > most:
            text = f"prompt and max_new_tokens must be 1 to {most} tokens together"
            return answers.refused(message, "InvalidRequest", text, "max_new_tokens")
        if message.timeout_s is not None and not message.timeout_s > 0:
            text = f"timeout_s must be more than 0, got {message.timeout_s}"
            return answers.refused(message, "InvalidRequest", text, "timeout_s")
        self._counters.arrivals += 1
        request = Request(
            message, self._counters.arrivals, tokens, len(tokens), max_new, now, grammar=grammar
        )
        self.waiting.add(request)
        if message.timeout_s is not None:
            self._timed.put(request.number, request)
        return None

    def _queue_is_full(self, account: str, n_tokens: int) -> str | None:
        """In words, what is in the way of a prompt of `n_tokens`.

        A full queue still takes from an account that has less than its share of it, so that one
        that floods it does not shut out the others. It never holds more than the limits times
        1 + 1/2 + ... + 1/accounts.
        """
        waiting, most = self.waiting, self.limits.max_queued_tokens
        share = waiting.aging.share(account)
        n, limit = len(waiting), self.limits.max_queued_requests
        if n >= limit and share.n_requests >= limit // share.accounts:
            return f"{n} requests are waiting"
        if most is None or not share.n_tokens or waiting.n_tokens + n_tokens <= most:
            return None
        if share.n_tokens + n_tokens > most // share.accounts:
            return f"{waiting.n_tokens} tokens are waiting"
        return None

    def abort(self, request_id: str, now: float) -> list[ToFrontend]:
        """End a request now; what it computed stays in the tree. Unknown ids are ignored."""
        request = self.waiting.get(request_id) or self.running.get(request_id)
        return [] if request is None else [self._finish(request, FinishReason.ABORT, None, now)]

    def expire(self, now: float) -> list[ToFrontend]:
        """End what is past its deadline, waiting or running; what it computed stays in the tree."""
        self.cache.expire_pins(now)
        replies: list[ToFrontend] = []
        while (request := self._timed.first()) is not None and request.deadline <= now:
            replies.append(self._finish(request, FinishReason.TIMEOUT, None, now))
        return replies

    def flush(self) -> bool:
        """Forget every prefix. False, and no change, while requests run or wait."""
        return self.idle and self.cache.flush()

    @property
    def io_pending(self) -> bool:
        """Whether files are being read or written: `file_done` is to be called when one ends."""
        return self.cache.io_pending

    def file_done(self, done: FileDone) -> None:
        """Fold in that a file is read or written: whoever waits for it may start."""
        self.cache.file_done(done)

    def back_up(self) -> StepPlan | None:
        """A step that brings to disk what is only in memory; None when no more of it can be.

        For the end, when nothing runs: to be carried out and called again, as writes end.
        """
        self.cache.back_up_all(BACK_UP_PAGES)
        return self._step([]) if self.cache.has_moves or self.cache.io_pending else None

    # --- deciding a step -------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do. It may move pages only."""
        self.waiting.begin_step()
        self._grow_decodes()
        if self.policy.preempts:
            self._preempt()
        decoding = [r for r in self.running.values() if r.decodes and r.goes_on]
        budget = self.limits.step_tokens - len(decoding)
        chunks: list[Chunk] = []
        for request in decoding:  # one row each, and the forced tokens of some
            chunks.append(self._chunk(request, 1 + budget))
            budget -= len(chunks[-1].tokens) - 1
        if chunks:  # somebody is being answered: a long prompt must not make the step long
            budget = min(budget, self._mixed_budget())
        weigh = bool(chunks) and self.limits.mixed_tokens is not None
        for request in self.running.values():
            if not request.decodes and request.launched < len(request.tokens) and budget > 0:
                chunks.append(self._chunk(request, pieces.affordable(request, budget, weigh)))
                budget -= pieces.weight(chunks[-1], weigh)
        headroom = admission.headroom_pages(self.running, self.cache.page_size)
        while budget > 0 and (admitted := self._admit(now, headroom)) is not None:
            chunks.append(self._chunk(admitted, pieces.affordable(admitted, budget, weigh)))
            budget -= pieces.weight(chunks[-1], weigh)
        return self._step(chunks) if chunks or self.cache.has_moves else None

    def _mixed_budget(self) -> int:
        """Prompt tokens of a step that also decodes: so many for each prompt that wants them.

        One long prompt among many chats goes in small pieces; when many prompts want to start,
        large pieces are what gets everybody answered soonest. Tokens deep in a prompt count for
        more here: they read everything before them.
        """
        if self.limits.mixed_tokens is None:
            return self.limits.step_tokens
        prefills = sum(not r.decodes for r in self.running.values())
        return self.limits.mixed_tokens * (prefills + len(self.waiting))

    def _step(self, chunks: list[Chunk]) -> StepPlan:
        self._counters.steps += 1
        leaves, enters = tuple(self._leaves), tuple(self._enters)
        self._leaves, self._enters = [], []
        return StepPlan(
            self._counters.steps, leaves, enters, self.cache.take_moves(), tuple(chunks)
        )

    def _chunk(self, request: Request, budget: int) -> Chunk:
        return pieces.next_chunk(request, budget, jump_forward=self.limits.jump_forward)

    def _grow_decodes(self) -> None:
        """A slot for the newest token of every decoding request, the oldest request first."""
        for request in sorted(self.running.values(), key=lambda r: r.number):
            while request.decodes and request.goes_on:
                if self.cache.ensure(request.held_lease, request.length):
                    break
                self._make_way()

    def _make_way(self) -> None:
        """Free pages: retract somebody. The last one running unlocks its path instead."""
        if len(self.running) > 1:
            self._retract(admission.victim(self.running, self.policy.preempts))
            return
        (request,) = self.running.values()
        assert request.held_lease.node is not None, f"{request.id} does not fit an empty pool"
        self.cache.detach(request.held_lease)

    def _preempt(self) -> None:
        """Retract requests of smaller priority while the first in line has no room."""
        limits, running = self.limits, self.running
        first = admission.first_in_line(self.waiting, running, self.cache)
        while first is not None and running:
            full = len(running) >= limits.max_running_requests
            bound = limits.starvation_bound
            victim = admission.preempted(first, running, self.cache, full, bound)
            if victim is None:
                return
            self._retract(victim)
            self.waiting.refresh(first)

    def _retract(self, request: Request) -> None:
        """Back to the queue. What it computed is published, so resuming is mostly a hit."""
        request.on(Event.RETRACT)
        request.retractions += 1
        self._counters.retractions += 1
        request.prompt_logprobs.clear()
        request.forced_logprobs.clear()
        self._give_back(request)
        self._leave(request)
        self.waiting.add(request)

    def _admit(self, now: float, headroom: int) -> Request | None:
        """Start the next waiting request, if one may start now."""
        if not self.waiting or len(self.running) >= self.limits.max_running_requests:
            return None
        request = admission.choose(self.waiting, self.running, self.cache, headroom)
        if request is None:
            return None
        request.on(Event.ADMIT)
        self.waiting.admit(request)
        self.running[request.id] = request
        self._counters.admissions += 1
        request.admission = self._counters.admissions
        request.computed = request.launched = request.held_lease.n_cached
        if not request.ran:
            self._count_first_admission(request, now)
        if request.wants_prompt_logprobs and request.submit.logprob_start == 0:
            request.prompt_logprobs.append(TokenLogprob(None, request.tokens[0]))
        self._enters.append(_enter(request))
        return request

    def _count_first_admission(self, request: Request, now: float) -> None:
        request.cached_tokens = request.computed
        request.host_tokens = request.held_lease.host_tokens
        request.disk_tokens = request.held_lease.disk_tokens
        request.miss_reason = self.cache.miss_reason(
            request.submit.namespace,
            request.tokens,
            request.computed,
            request.reuse_limit,
            request.page_keys,
        )
        request.admitted_s = now
        self._counters.count_first_admission(request)

    # --- learning --------------------------------------------------------------------------------

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[ToFrontend]:
        """Fold the result of `plan` into the state. Returns what the frontends are to be told."""
        replies: list[ToFrontend] = []
        for chunk, done in zip(plan.chunks, result.chunks, strict=True):
            request = self.running.get(chunk.request_id)
            if request is None or request.admission != chunk.admission:
                self._counters.stale_rows += len(chunk.tokens)
            else:
                replies += self._apply(request, chunk, done, now)
        return replies

    def _apply(
        self, request: Request, chunk: Chunk, done: ChunkResult, now: float
    ) -> list[ToFrontend]:
        request.computed = chunk.start + len(chunk.tokens)
        request.ahead -= chunk.samples
        scores = (
            request.prompt_logprobs if request.wants_prompt_logprobs else request.forced_logprobs
        )
        scores += done.target_logprobs
        self.waiting.order.charge(request, len(chunk.tokens) + chunk.samples)
        if request.state is State.PREFILL:
            self.cache.commit(request.held_lease, request.tokens[: request.computed])
            if request.computed < len(request.tokens):
                return []
            request.on(Event.PREFILLED)
        if done.error is not None:
            self._finish(request, FinishReason.ABORT, None, now)
            return [answers.failed(request, done.error)]
        ended = self._extend(request, done, now)
        replies: list[ToFrontend] = []
        if done.token is not None or request.wants_prompt_logprobs:
            replies.append(answers.tokens(request, done.token))
        if ended is not None:
            replies.append(self._finish(request, *ended, now))
        return replies

    def _extend(
        self, request: Request, done: ChunkResult, now: float
    ) -> tuple[FinishReason, int | None] | None:
        """Append the sampled token and those forced after it. Why the request ends, if it does."""
        if done.token is None:
            return answers.ended(request, self.limits.eos_token_ids)
        if request.first_token_s < 0:
            request.first_token_s = now
        for i, token in enumerate((done.token.token_id, *done.forced)):
            request.tokens.append(token)
            request.jumped += i > 0
            self._counters.jumped_tokens += i > 0
            self._counters.generated_tokens += 1
            if (ended := answers.ended(request, self.limits.eos_token_ids)) is not None:
                return ended
        return (FinishReason.STOP, None) if done.complete else None

    def _finish(
        self, request: Request, reason: FinishReason, matched: int | None, now: float
    ) -> Finished:
        request.on(Event.FINISH)
        del request.tokens[request.prompt_length + request.told :]
        if request.id in self.running:
            self._give_back(request)
            self._leave(request)
        else:
            self.waiting.remove(request)
        if request.submit.timeout_s is not None:
            self._timed.remove(request.number)
        return answers.finished(request, reason, matched, now)

    def _give_back(self, request: Request) -> None:
        """Publish what is computed and release the lease."""
        self.cache.commit(request.held_lease, request.tokens[: request.computed])
        self.cache.release(request.held_lease)
        request.lease = None
        request.computed = request.launched = request.ahead = 0

    def _leave(self, request: Request) -> None:
        del self.running[request.id]
        self._leaves.append(request.id)

    # --- looking ---------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Gauges of now and counters since the start."""
        return counters.stats(self._counters, self.running, self.waiting, self.cache)

    def violations(self) -> list[str]:
        """Broken invariants of the cache and of the requests' hold on it, in words."""
        return counters.violations(self.running, self.waiting, self.cache)


def _enter(request: Request) -> Enter:
    n = request.prompt_length
    return Enter(
        request_id=request.id,
        sampling=request.submit.sampling,
        prompt=request.tokens[:n],
        output=request.tokens[n:],
        top_logprobs=request.submit.top_logprobs,
        return_logprob=request.submit.return_logprob,
        grammar=request.grammar,
    )
