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

from array import array

from ramify.radix_cache import invariants
from ramify.radix_cache.eviction import LINEAR_WORK
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.plans import FileDone
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.ids import FinishReason
from ramify.srt.messages import EngineStats, Finished, Rejected, Submit, ToFrontend, TokenLogprob
from ramify.srt.scheduling import admission, answers
from ramify.srt.scheduling.lazy_heap import LazyHeap
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import Chunk, ChunkResult, Enter, StepPlan, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.request import Event, Request, State
from ramify.srt.scheduling.waiting import WaitingQueue

BACK_UP_PAGES = 256  # begun at once
UNKNOWN = array("I", [0])  # holds the place of a token that is being sampled


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
        self._arrivals = self._steps = self._retractions = self._admissions = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._stale_rows = 0
        self._host_tokens = self._disk_tokens = 0

    # --- requests come and go --------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def submit(self, message: Submit, now: float) -> Rejected | None:
        """Take a request, or say why not."""
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
        self._arrivals += 1
        request = Request(message, self._arrivals, tokens, len(tokens), max_new, now)
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
        decoding = [r for r in self.running.values() if r.decodes]
        chunks = [self._chunk(r, 1) for r in decoding if r.goes_on]
        budget = self.limits.step_tokens - len(chunks)
        if chunks:  # somebody is being answered: a long prompt must not make the step long
            budget = min(budget, self._mixed_budget())
        weigh = bool(chunks) and self.limits.mixed_tokens is not None
        for request in self.running.values():
            if not request.decodes and request.launched < len(request.tokens) and budget > 0:
                chunks.append(self._chunk(request, _affordable(request, budget, weigh)))
                budget -= _weight(chunks[-1], weigh)
        headroom = admission.headroom_pages(self.running, self.cache.page_size)
        while budget > 0 and (admitted := self._admit(now, headroom)) is not None:
            chunks.append(self._chunk(admitted, _affordable(admitted, budget, weigh)))
            budget -= _weight(chunks[-1], weigh)
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
        self._steps += 1
        leaves, enters = tuple(self._leaves), tuple(self._enters)
        self._leaves, self._enters = [], []
        return StepPlan(self._steps, leaves, enters, self.cache.take_moves(), tuple(chunks))

    def _chunk(self, request: Request, budget: int) -> Chunk:
        start = request.launched
        end = min(start + budget, request.length)
        first, targets = _targets(request, start, end)
        samples = end == request.length and request.max_new_tokens > 0
        request.launched = end
        request.ahead += samples
        return Chunk(
            request_id=request.id,
            admission=request.admission,
            start=start,
            tokens=request.tokens[start:end] or UNKNOWN,
            pages=tuple(request.held_lease.table),
            samples=samples,
            first_target_row=first,
            targets=targets,
            follows=start >= len(request.tokens),
        )

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
        self._retractions += 1
        request.prompt_logprobs.clear()
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
        self._admissions += 1
        request.admission = self._admissions
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
        self._prompt_tokens += request.prompt_length
        self._cached_tokens += request.cached_tokens
        self._host_tokens += request.host_tokens
        self._disk_tokens += request.disk_tokens

    # --- learning --------------------------------------------------------------------------------

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[ToFrontend]:
        """Fold the result of `plan` into the state. Returns what the frontends are to be told."""
        replies: list[ToFrontend] = []
        for chunk, done in zip(plan.chunks, result.chunks, strict=True):
            request = self.running.get(chunk.request_id)
            if request is None or request.admission != chunk.admission:
                self._stale_rows += len(chunk.tokens)
            else:
                replies += self._apply(request, chunk, done, now)
        return replies

    def _apply(
        self, request: Request, chunk: Chunk, done: ChunkResult, now: float
    ) -> list[ToFrontend]:
        request.computed = chunk.start + len(chunk.tokens)
        request.ahead -= chunk.samples
        request.prompt_logprobs += done.target_logprobs
        self.waiting.order.charge(request, len(chunk.tokens) + chunk.samples)
        if request.state is State.PREFILL:
            self.cache.commit(request.held_lease, request.tokens[: request.computed])
            if request.computed < len(request.tokens):
                return []
            request.on(Event.PREFILLED)
        if done.token is not None:
            request.tokens.append(done.token.token_id)
            self._generated_tokens += 1
            if request.first_token_s < 0:
                request.first_token_s = now
        replies: list[ToFrontend] = []
        if done.token is not None or request.wants_prompt_logprobs:
            replies.append(answers.tokens(request, done.token))
        ended = answers.ended(request, self.limits.eos_token_ids)
        if ended is not None:
            replies.append(self._finish(request, *ended, now))
        return replies

    def _finish(
        self, request: Request, reason: FinishReason, matched: int | None, now: float
    ) -> Finished:
        request.on(Event.FINISH)
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
        pages, tiers = self.cache.pages, self.cache.tiers
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            pages_total=pages.n_pages,
            pages_free=pages.n_free,
            pages_evictable=pages.n_evictable,
            cached_tokens_held=self.cache.tree.n_tokens,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            retractions=self._retractions,
            evicted_tokens=self.cache.tree.evicted_tokens,
            stale_rows=self._stale_rows,
            host_tokens=self._host_tokens,
            disk_tokens=self._disk_tokens,
            host_pages=tiers.host_pages if tiers else 0,
            disk_pages=len(tiers.pages.disk) if tiers else 0,
            tier_losses=tiers.losses if tiers else 0,
        )

    def violations(self) -> list[str]:
        """Broken invariants of the cache and of the requests' hold on it, in words."""
        found = [*invariants.check(self.cache), *self.waiting.violations()]
        if [id(r.lease) for r in self.running.values()] != list(self.cache.leases):
            found.append(f"{len(self.cache.leases)} leases for {len(self.running)} requests")
        found += [f"{r.id} waits and holds pages" for r in self.waiting.values() if r.lease]
        return found


def _affordable(request: Request, budget: int, weigh: bool) -> int:
    """How many of the request's next tokens a budget pays for; at least one."""
    if not weigh:
        return budget
    return -(-budget * LINEAR_WORK // (LINEAR_WORK + request.launched))


def _weight(chunk: Chunk, weigh: bool) -> int:
    """What a chunk takes of a budget: see `eviction.LINEAR_WORK`."""
    n = len(chunk.tokens)
    return n * (LINEAR_WORK + chunk.start) // LINEAR_WORK if weigh else n


def _targets(request: Request, start: int, end: int) -> tuple[int, tuple[int, ...]]:
    """(first row, tokens) that rows start .. end - 1 score: row p scores token p + 1."""
    if not request.wants_prompt_logprobs:
        return 0, ()
    first = max(start + 1, request.submit.logprob_start)
    return first - 1 - start, tuple(request.tokens[first : min(end + 1, request.prompt_length)])


def _enter(request: Request) -> Enter:
    n = request.prompt_length
    return Enter(
        request_id=request.id,
        sampling=request.submit.sampling,
        prompt=request.tokens[:n],
        output=request.tokens[n:],
        top_logprobs=request.submit.top_logprobs,
        return_logprob=request.submit.return_logprob,
    )
