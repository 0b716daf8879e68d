"""The runtime without a model: real scheduler, real cache, a runner that checks what it reads.

The fake runner keeps, in each slot, the token whose keys and values would be there, and derives the
next token from every token it can read through the page table. So a wrong page, a missed copy, a
slot written twice or a lost token changes the output, which is compared with what the request
generates alone. Host memory and files hold tokens too; files are read and written some steps late,
and now and then not at all. Time is virtual, faults are seeded: a seed says all about a run.
"""

import random
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.clock import VirtualClock
from ramify.srt.messages import Finished, Rejected, Submit, TokenLogprob, Tokens, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import StepPlan, StepResult
from ramify.srt.scheduling.request import State
from ramify.srt.scheduling.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).parent))
from draws import EOS, random_cache, random_limits, restarted
from fake_runner import FakeGrammar, FakeRunner, next_token

CHECK_EVERY = 4  # steps between two checks of all invariants
MISS_REASONS = (None, "never seen", "evicted", "namespace", "below threshold")


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
        self.runner = FakeRunner(n_pages, page_size, cache.tiers.n_slots if cache.tiers else 0)
        self.overlap = rng.random() < 0.5 if overlap is None else overlap
        self.accounts = rng.choice([[""], ["", "a"], ["a", "b", "c"]])
        self.in_flight: tuple[StepPlan, StepResult] | None = None
        self.clock = VirtualClock()
        self.trunks = [self._ids(rng.randint(1, self.context // 2)) for _ in range(3)]
        self.jobs: dict[str, Job] = {}
        self.earlier: list[Job] = []  # whose ids were taken again
        self.waiting: dict[str, Job] = {}  # taken and not running, as the plans tell
        self.steps = self.pinned = self.failed_files = self.waits = self.losses = 0
        self.reliability = 0.9  # of reading and writing files
        self.trace: list[str] = []

    def _ids(self, n: int) -> list[int]:
        return [self.rng.randint(1, 2) for _ in range(n)]

    def run(self, n_steps: int = 60) -> None:
        tiers = self.scheduler.cache.tiers
        if tiers and tiers.disk_pages and self.rng.random() < 0.5:
            self._days(n_steps // 2)
            self._restart()
        self._days(n_steps)
        self._check_end()

    def _days(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self._arrivals()
            self._faults()
            self.step()
        self._drain()

    def drain(self) -> None:
        """Let everything come to its end, and look at all of it."""
        self._drain()
        self._check_end()

    def _drain(self) -> None:
        for _ in range(20_000):
            if self.scheduler.idle and self.in_flight is None:
                break
            self.step()

    def _restart(self) -> None:
        """The process ends and starts again: only files are left, the last of them perhaps not."""
        self.losses += self.scheduler.stats().tier_losses
        while self.runner.open:
            self.runner.end(0, self.rng.random() < 0.5)
        cache = restarted(self.scheduler.cache, self.runner.records.values())
        self.scheduler = Scheduler(self.limits, cache)
        self.runner.rows.clear()
        self.runner.enters.clear()
        self.runner.forget_memory()

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
            account=rng.choice(self.accounts),
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
        known = cache.hit_lengths(job.submit.namespace, key, len(key))[0]
        n, refusal = cache.pin(job.submit.namespace, key, now, self.rng.uniform(0.01, 2.0))
        assert n == (known if refusal is None else 0)
        self.pinned += n

    def step(self) -> None:
        now = self.clock.now()
        self._receive(self.scheduler.expire(now))
        plan = self.scheduler.plan(now)
        self.clock.advance(0.01)
        self.steps += 1
        if plan is None and self.in_flight is None and not self.scheduler.idle:
            assert self.scheduler.io_pending, "requests wait for nothing"
            self.waits += 1
        if plan is not None:
            self._check_plan(plan)
            if self.traced:
                self.trace.append(repr(plan))
        launched = None if plan is None else (plan, self.runner.run(plan))
        if self.overlap:  # the step before this one is learned of only now
            launched, self.in_flight = self.in_flight, launched
        if launched is not None:
            self._receive(self.scheduler.apply(*launched, self.clock.now()))
        while self.runner.open and self.rng.random() < 0.4:
            self._end_a_file()
        if self.steps % CHECK_EVERY == 0:
            assert self.scheduler.violations() == []

    def _end_a_file(self) -> None:
        ok = self.rng.random() < self.reliability
        self.failed_files += not ok
        i = self.rng.randrange(len(self.runner.open))
        self.scheduler.file_done(self.runner.end(i, ok))

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
        assert plan.n_tokens <= self.limits.step_tokens
        assert plan.chunks or plan.moves
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
                same = other.submit.account == entered.submit.account
                other.overtaken += same and other.number < entered.number
        assert all(j.overtaken <= self.limits.starvation_bound for j in self.waiting.values())
        assert sorted(self.waiting) == sorted(r.id for r in self.scheduler.waiting.values())

    def _check_end(self) -> None:
        assert self.scheduler.idle
        assert self.scheduler.violations() == []
        for job in [*self.earlier, *self.jobs.values()]:
            assert job.end is not None, f"{job.submit.request_id} was never answered"
            if isinstance(job.end, Finished):
                self._check_job(job, job.end)
        self._check_flush(self.scheduler.cache)

    def _check_flush(self, cache: PrefixCache) -> None:
        """Nothing is left of the cache, on no tier, when all reads and writes have ended."""
        self.losses += self.scheduler.stats().tier_losses
        assert self.scheduler.flush()
        assert cache.pages.n_free == cache.pages.n_pages
        while cache.has_moves or self.runner.open:
            self.runner.carry_out(cache.take_moves())
            if self.runner.open:
                self._end_a_file()
        assert cache.tiers is None or cache.tiers.host_pages == 0
        assert self.scheduler.violations() == []
        assert self.runner.files == {}

    def _check_job(self, job: Job, end: Finished) -> None:
        tokens, reason = job.expected()
        assert end.completion_tokens == len(job.tokens)
        assert end.cached_tokens < end.prompt_tokens == len(job.prompt)
        assert self.reuse or end.cached_tokens == 0
        assert end.host_tokens + end.disk_tokens <= end.cached_tokens
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
