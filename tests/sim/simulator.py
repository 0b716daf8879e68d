"""The runtime without a model: real scheduler, real cache, a runner that checks what it reads.

The fake runner keeps, in each slot, the token whose keys and values would be there, and derives the
next token from every token it can read through the page table. So a wrong page, a missed copy, a
slot written twice or a lost token changes the output, which is compared with what the request
generates alone. Time is virtual, faults are seeded: a seed is a complete description of a run.
"""

import random
import zlib
from array import array
from dataclasses import dataclass, field

from ramify.radix_cache import eviction
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.clock import VirtualClock
from ramify.srt.messages import Finished, Rejected, Submit, TokenLogprob, Tokens, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, Enter, StepPlan, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.request import State
from ramify.srt.scheduling.scheduler import Scheduler

EOS = 0
CHECK_EVERY = 4  # steps between two checks of all invariants
MISS_REASONS = (None, "never seen", "evicted", "namespace")
N_TOKENS = 7


def next_token(tokens: "array[int]") -> int:
    """The fake model: any change in any earlier token shows. Ends one time in fourteen."""
    digest = zlib.crc32(tokens.tobytes())
    return EOS if digest % 14 == 0 else 1 + digest // 14 % (N_TOKENS - 1)


@dataclass(frozen=True)
class FakeGrammar:
    """Forces the tokens that would be sampled anyway, a few at a time: so no output may change."""

    unenforced: tuple[str, ...] = ()

    def forced(self, seen: "array[int]", most: int, ends: tuple[int, ...]) -> tuple[int, ...]:
        sequence, run = array("I", seen), []
        while len(run) < min(most, zlib.crc32(seen.tobytes()) % 5):
            token = next_token(sequence)
            if token in ends:
                break
            sequence.append(token)
            run.append(token)
        return tuple(run)


class FakeRunner:
    """Carries out plans on slots that hold tokens. Asserts that a plan is one a runner could do."""

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.slots: list[list[int | None]] = [[None] * page_size for _ in range(n_pages)]
        self.rows: dict[str, int] = {}  # by request: the token it sampled last
        self.enters: dict[str, Enter] = {}

    def run(self, plan: StepPlan) -> StepResult:
        for request_id in plan.leaves:
            del self.rows[request_id], self.enters[request_id]
        for enter in plan.enters:
            assert enter.request_id not in self.rows
            self.rows[enter.request_id] = -1
            self.enters[enter.request_id] = enter
        for copy in plan.moves:
            n = copy.n_slots
            self.slots[copy.target][:n] = self.slots[copy.source][:n]
        for chunk in plan.chunks:  # all writes of a step come before all reads, as in a layer
            last = self.rows[chunk.request_id]
            tokens = [last] if chunk.follows else chunk.tokens
            for position, token in enumerate(tokens, chunk.start):
                page = chunk.pages[position // self.page_size]
                self.slots[page][position % self.page_size] = token
        return StepResult(tuple(self._result(chunk) for chunk in plan.chunks))

    def read(self, pages, n: int) -> "array[int]":
        """The first n tokens of a sequence, through its page table."""
        size = self.page_size
        return array("I", [self.slots[pages[i // size]][i % size] for i in range(n)])

    def _result(self, chunk) -> ChunkResult:
        seen = self.read(chunk.pages, chunk.start + len(chunk.tokens))
        token = TokenLogprob(-1.0, next_token(seen)) if chunk.samples else None
        forced: tuple[int, ...] = ()
        if token is not None:
            self.rows[chunk.request_id] = token.token_id
            forced = self._forced(chunk, array("I", [*seen, token.token_id]))
        rows = range(chunk.first_target_row, chunk.first_target_row + len(chunk.targets))
        scores = [
            # the score of a target says which row it came from, so a shifted row shows
            TokenLogprob(-float(chunk.start + row), target)
            for row, target in zip(rows, chunk.targets, strict=True)
        ]
        assert all(0 <= row < len(chunk.tokens) for row in rows)
        return ChunkResult(token, tuple(scores), forced)

    def _forced(self, chunk, seen: "array[int]") -> tuple[int, ...]:
        """Never an end; with scores wanted, no stop id either: both are sampled."""
        enter = self.enters[chunk.request_id]
        if enter.grammar is None or seen[-1] == EOS:
            return ()
        stops = enter.sampling.stop_token_ids if enter.return_logprob else ()
        return enter.grammar.forced(seen, chunk.max_forced, (EOS, *stops))


@dataclass
class Job:
    """One request of the simulation and all that its frontend was told."""

    submit: Submit
    prompt: list[int]
    number: int  # order of arrival
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    grammar: FakeGrammar | None = None
    end: Finished | Rejected | None = None
    aborted: bool = False
    arrived: float = 0.0
    ended: float = 0.0
    overtaken: int = 0  # counted here, in the plainest way

    def expected(self) -> tuple[list[int], str]:
        """What the request generates alone, and why it ends."""
        sampling = self.submit.sampling
        sequence = array("I", self.prompt)
        output: list[int] = []
        while len(output) < (sampling.max_new_tokens or 0):
            token = next_token(sequence)
            sequence.append(token)
            output.append(token)
            stops = token in sampling.stop_token_ids or (token == EOS and not sampling.ignore_eos)
            if stops and len(output) >= sampling.min_new_tokens:
                return output, "stop"
        return output, "length"


def random_cache(rng: random.Random) -> PrefixCache:
    """A pool small enough that everything runs out of it."""
    page_size = rng.choice([1, 2, 4, 16])
    return PrefixCache(
        rng.randint(6, 40) * (4 if page_size == 1 else 1),
        page_size,
        policy=rng.choice(list(eviction.POLICIES.values())),
        reuse=rng.random() < 0.9,
        pin_share=rng.choice([0.0, 0.25, 0.9]),
    )


def random_limits(rng: random.Random, pool_tokens: int) -> SchedulerLimits:
    """Any policy, and limits that are reached."""
    step_tokens = rng.randint(4, 24)
    return SchedulerLimits(
        context_length=min(pool_tokens, rng.randint(20, 120)),
        eos_token_ids=(EOS,),
        step_tokens=step_tokens,
        max_running_requests=rng.randint(1, min(8, step_tokens)),
        max_queued_requests=rng.randint(8, 40),
        starvation_bound=rng.randint(1, 6),
        schedule_policy=rng.choice(list(POLICIES)),
        mixed_tokens=rng.randint(1, step_tokens) if rng.random() < 0.5 else None,
        max_queued_tokens=rng.randint(20, 400) if rng.random() < 0.3 else None,
    )


class Simulation:
    """One seeded run. `run()` ends when every request is answered, or fails.

    `limits`, `cache` and `overlap` are drawn from the seed unless given.
    """

    def __init__(
        self,
        seed: int,
        *,
        limits: SchedulerLimits | None = None,
        cache: PrefixCache | None = None,
        traced: bool = False,
        overlap: bool | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        cache = cache or random_cache(rng)
        n_pages, page_size = cache.pages.n_pages, cache.page_size
        self.limits = limits or random_limits(rng, n_pages * page_size)
        self.context = self.limits.context_length
        self.reuse = cache.reuse
        self.traced = traced
        self.scheduler = Scheduler(self.limits, cache)
        self.runner = FakeRunner(n_pages, page_size)
        self.overlap = rng.random() < 0.5 if overlap is None else overlap
        self.in_flight: tuple[StepPlan, StepResult] | None = None
        self.clock = VirtualClock()
        self.trunks = [self._ids(rng.randint(1, self.context // 2)) for _ in range(3)]
        self.jobs: dict[str, Job] = {}
        self.earlier: list[Job] = []  # whose ids were taken again
        self.waiting: dict[str, Job] = {}  # taken and not running, as the plans tell
        self.steps = self.pinned = 0
        self.trace: list[str] = []

    def _ids(self, n: int) -> list[int]:
        return [self.rng.randint(1, 2) for _ in range(n)]

    def run(self, n_steps: int = 60) -> None:
        for _ in range(n_steps):
            self._arrivals()
            self._faults()
            self.step()
        self.drain()

    def drain(self) -> None:
        """Let everything come to its end, and look at all of it."""
        for _ in range(20_000):
            if self.scheduler.idle and self.in_flight is None:
                break
            self.step()
        self._check_end()

    # --- the world -------------------------------------------------------------------------------

    def _arrivals(self) -> None:
        while self.rng.random() < 0.35:
            self.submit(self._request(f"r{len(self.jobs)}"))

    def _request(self, request_id: str) -> Job:
        rng = self.rng
        prompt = [*rng.choice(self.trunks), *self._ids(rng.randint(0, 8))]
        if len(self.jobs) > 2 and rng.random() < 0.3:  # the next turn of an earlier conversation
            earlier = rng.choice(list(self.jobs.values()))
            prompt = [*earlier.prompt, *earlier.tokens, *self._ids(2)]
        prompt = prompt[: self.context - 1]
        max_new = rng.randint(0, min(30, self.context - len(prompt)))
        sampling = SamplingParams(
            max_new_tokens=max_new,
            min_new_tokens=rng.randint(0, max_new),
            stop_token_ids=(3,) if rng.random() < 0.2 else (),
            ignore_eos=rng.random() < 0.3,
        )
        start = rng.randint(0, len(prompt) - 1) if rng.random() < 0.2 else -1
        namespace = rng.choice(["", "", "tenant"])
        message = Submit(
            request_id,
            pack_ids(prompt),
            sampling,
            namespace,
            return_logprob=start >= 0,
            logprob_start=start,
            priority=rng.randint(-1, 2),
            program_id=rng.choice(["", "a", "b", request_id]),
            timeout_s=rng.uniform(0.01, 1.0) if rng.random() < 0.15 else None,
        )
        grammar = FakeGrammar() if rng.random() < 0.3 else None
        return Job(message, prompt, len(self.jobs) + len(self.earlier), grammar=grammar)

    def submit(self, job: Job) -> None:
        self.jobs[job.submit.request_id] = self.waiting[job.submit.request_id] = job
        job.arrived = self.clock.now()
        rejected = self.scheduler.submit(job.submit, job.arrived, job.grammar)
        if rejected is not None:
            self._receive([rejected])

    def _faults(self) -> None:
        if self.jobs and self.rng.random() < 0.15:
            self._abort(self.rng.choice(list(self.jobs)))
        if self.scheduler.running and self.rng.random() < 0.1:  # and take the free id at once
            request_id = self.rng.choice(list(self.scheduler.running))
            self._abort(request_id)
            self.earlier.append(self.jobs[request_id])
            self.submit(self._request(request_id))
        if self.jobs and self.rng.random() < 0.1:
            self._pin_or_unpin(self.rng.choice(list(self.jobs.values())))
        if self.rng.random() < 0.05:
            assert self.scheduler.flush() == self.scheduler.idle
        if self.jobs and self.rng.random() < 0.05:  # a duplicate of a live id changes nothing
            job = self.rng.choice(list(self.jobs.values()))
            if job.end is None:
                rejected = self.scheduler.submit(job.submit, self.clock.now())
                assert rejected is not None
                assert rejected.param == "rid"

    def _abort(self, request_id: str) -> None:
        job = self.jobs[request_id]
        job.aborted = job.aborted or job.end is None
        self._receive(self.scheduler.abort(request_id, self.clock.now()))

    def _pin_or_unpin(self, job: Job) -> None:
        cache, now = self.scheduler.cache, self.clock.now()
        key = as_tokens([*job.prompt, *job.tokens][: self.rng.randint(1, self.context)])
        if self.rng.random() < 0.3:
            cache.unpin(job.submit.namespace, key)
            return
        known = cache.hit_length(job.submit.namespace, key, len(key))
        n, refusal = cache.pin(job.submit.namespace, key, now, self.rng.uniform(0.01, 2.0))
        assert n == (known if refusal is None else 0)
        self.pinned += n

    def step(self) -> None:
        now = self.clock.now()
        self._receive(self.scheduler.expire(now))
        plan = self.scheduler.plan(now)
        self.clock.advance(0.01)
        self.steps += 1
        if plan is not None:
            self._check_plan(plan)
            if self.traced:
                self.trace.append(repr(plan))
        launched = None if plan is None else (plan, self.runner.run(plan))
        if self.overlap:  # the step before this one is learned of only now
            launched, self.in_flight = self.in_flight, launched
        if launched is not None:
            self._receive(self.scheduler.apply(*launched, self.clock.now()))
        if self.steps % CHECK_EVERY == 0:
            assert self.scheduler.violations() == []

    def _receive(self, messages) -> None:
        for message in messages:
            job = self.jobs[message.request_id]
            assert job.end is None, f"{message.request_id} was told something after its end"
            if isinstance(message, Tokens):
                job.tokens += message.token_ids
                job.logprobs += message.logprobs or []
                if message.prompt_logprobs is not None:
                    assert job.prompt_logprobs is None
                    job.prompt_logprobs = message.prompt_logprobs
            else:
                job.end, job.ended = message, self.clock.now()
                self.waiting.pop(message.request_id, None)

    # --- what must hold --------------------------------------------------------------------------

    def _check_plan(self, plan: StepPlan) -> None:
        assert 0 < plan.n_tokens <= self.limits.step_tokens
        running = self.scheduler.running
        decoding = [
            c for c in plan.chunks if c.follows or running[c.request_id].state is State.DECODE
        ]
        prompts = plan.n_tokens - sum(len(c.tokens) for c in decoding)
        prefills = sum(r.state is State.PREFILL for r in running.values())
        wanting = prefills + len(self.scheduler.waiting)
        most = (self.limits.mixed_tokens or self.limits.step_tokens) * wanting
        assert not decoding or prompts <= most
        assert len(self.scheduler.running) <= self.limits.max_running_requests
        for request_id in plan.leaves:
            if (job := self.jobs[request_id]).end is None:
                self.waiting[request_id] = job  # retracted
        for enter in plan.enters:
            entered = self.waiting.pop(enter.request_id)
            for other in self.waiting.values():
                other.overtaken += other.number < entered.number
        assert all(j.overtaken <= self.limits.starvation_bound for j in self.waiting.values())
        assert sorted(self.waiting) == sorted(r.id for r in self.scheduler.waiting.values())

    def _check_end(self) -> None:
        assert self.scheduler.idle
        assert self.scheduler.violations() == []
        for job in [*self.earlier, *self.jobs.values()]:
            assert job.end is not None, f"{job.submit.request_id} was never answered"
            if isinstance(job.end, Finished):
                self._check_job(job, job.end)
        pages = self.scheduler.cache.pages
        assert self.scheduler.flush()
        assert pages.n_free == pages.n_pages

    def _check_job(self, job: Job, end: Finished) -> None:
        tokens, reason = job.expected()
        assert end.completion_tokens == len(job.tokens)
        assert end.cached_tokens < end.prompt_tokens == len(job.prompt)
        assert self.reuse or end.cached_tokens == 0
        assert end.miss_reason in MISS_REASONS
        timeout_s = job.submit.timeout_s
        if end.reason == "timeout":
            assert timeout_s is not None
            assert job.ended >= job.arrived + timeout_s
            assert job.tokens == tokens[: len(job.tokens)]
            return
        if timeout_s is not None:  # the last step it may begin in begins before the deadline
            assert job.ended < job.arrived + timeout_s + 0.011
        if job.aborted:
            assert end.reason == "abort"
            assert job.tokens == tokens[: len(job.tokens)]
            return
        assert (job.tokens, end.reason) == (tokens, reason)
        start = job.submit.logprob_start
        if job.submit.return_logprob:
            assert [entry.token_id for entry in job.logprobs] == job.tokens
            for position, entry in enumerate(job.logprobs, len(job.prompt)):
                assert entry.logprob in (-1.0, -float(position - 1))  # sampled, or forced
        if start >= 0:
            assert job.prompt_logprobs is not None
            got = [(entry.token_id, entry.logprob) for entry in job.prompt_logprobs]
            scores = [None if p == 0 else -float(p - 1) for p in range(start, len(job.prompt))]
            assert got == list(zip(job.prompt[start:], scores, strict=True))
