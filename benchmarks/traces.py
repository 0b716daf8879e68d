"""Synthetic workloads shaped like published ones, and a driver that runs them without a model.

Each workload is a set of sessions. A session is a generator: it yields a prompt, is sent the
answer, waits a while, yields the next. So conversations grow by what was really answered, and the
order of arrivals depends on the scheduler, as in life. Tokens are drawn; nothing is computed.
"""

import heapq
import itertools
import random
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ramify.srt.messages import Finished, Submit, TokenLogprob, Tokens, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import ChunkResult, StepPlan, StepResult
from ramify.srt.scheduling.scheduler import Scheduler

VOCABULARY = 50_000
Ids = list[int]


@dataclass(frozen=True)
class Ask:
    """One request of a session: after `wait` steps, `prompt`, to be answered by `n_new` tokens."""

    wait: int
    prompt: Ids
    n_new: int


Session = Generator[Ask, Ids, None]


def text(rng: random.Random, n: int) -> Ids:
    """n tokens that nobody else has."""
    return [rng.randrange(VOCABULARY) for _ in range(n)]


def multi_turn_chat(rng: random.Random, users: int = 120, turns: int = 6) -> Iterator[Session]:
    """A few characters with long sheets; many users, each with a conversation that grows."""
    sheets = [text(rng, rng.randint(600, 1400)) for _ in range(6)]

    def session(seed: int) -> Session:
        mine = random.Random(seed)
        history = list(mine.choice(sheets))
        for turn in range(turns):
            history += text(mine, mine.randint(20, 120))
            wait = mine.randint(0, 400) if turn == 0 else mine.randint(20, 200)
            history += yield Ask(wait, list(history), mine.randint(20, 100))

    return (session(rng.getrandbits(32)) for _ in range(users))


def few_shot(rng: random.Random, tasks: int = 12, questions: int = 60) -> Iterator[Session]:
    """Batches of questions under shared shots; tasks arrive interleaved."""
    shots = [text(rng, rng.randint(500, 1600)) for _ in range(tasks)]

    def session(shot: Ids, seed: int) -> Session:
        mine = random.Random(seed)
        yield Ask(mine.randint(0, 300), shot + text(mine, mine.randint(20, 80)), 4)

    order = [shot for shot in shots for _ in range(questions)]
    rng.shuffle(order)
    return (session(shot, rng.getrandbits(32)) for shot in order)


def agent_forks(rng: random.Random, agents: int = 60, depth: int = 5) -> Iterator[Session]:
    """Agents under one tool description: each step adds an observation; some steps are re-tried."""
    tools = text(rng, 900)

    def session(seed: int) -> Session:
        mine = random.Random(seed)
        trace = tools + text(mine, 60)
        for _ in range(depth):
            for _ in range(mine.choice((1, 1, 3))):  # siblings of one fork
                answer = yield Ask(mine.randint(0, 40), list(trace), mine.randint(20, 60))
            trace += answer + text(mine, mine.randint(30, 150))

    return (session(rng.getrandbits(32)) for _ in range(agents))


def unrelated(rng: random.Random, requests: int = 300) -> Iterator[Session]:
    """Nothing is shared: what the cache costs, and whether it stays out of the way."""

    def session(seed: int) -> Session:
        mine = random.Random(seed)
        yield Ask(mine.randint(0, 600), text(mine, mine.randint(100, 900)), 16)

    return (session(rng.getrandbits(32)) for _ in range(requests))


WORKLOADS = {
    "multi-turn chat": multi_turn_chat,
    "few-shot": few_shot,
    "agent forks": agent_forks,
    "unrelated": unrelated,
}


@dataclass
class Served:
    """One request as it was served."""

    prompt: Ids
    output: Ids
    cached: int = 0
    end: Finished | None = None


class Hold(NamedTuple):
    """A request holds the first n_tokens of its sequence from now on: 0 when it ends, or waits."""

    number: int  # in order of first admission
    n_tokens: int


@dataclass
class Run:
    """What was served, in order of first admission, and what was held meanwhile, in order of time.

    Holds begin with a prompt, as room for all of it is taken at once, then grow by what is
    computed. One that is back after a retraction begins with what was generated too.
    """

    served: list[Served] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)


def drive(scheduler: Scheduler, sessions: Iterator[Session], seed: int) -> Run:
    """Run all sessions to their ends."""
    return _Driver(scheduler, seed).run(sessions)


class _Driver:
    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self._scheduler = scheduler
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._due: list[tuple[int, int, Session, Ask]] = []  # (step, number, ...)
        self._open: dict[str, tuple[Session, Served]] = {}
        self._admitted: dict[str, int] = {}  # numbers in order of first admission
        self._run = Run()
        self._step = 0

    def run(self, sessions: Iterator[Session]) -> Run:
        for session in sessions:
            self._wait(session, next(session))
        while self._due or not self._scheduler.idle:
            while self._due and self._due[0][0] <= self._step:
                _, number, session, ask = heapq.heappop(self._due)
                self._submit(str(number), session, ask)
            plan = self._scheduler.plan(float(self._step))
            self._step += 1
            if plan is not None:
                self._note_holds(plan)
                self._carry_out(plan)
        return self._run

    def _wait(self, session: Session, ask: Ask) -> None:
        heapq.heappush(self._due, (self._step + ask.wait, next(self._numbers), session, ask))

    def _submit(self, name: str, session: Session, ask: Ask) -> None:
        sampling = SamplingParams(max_new_tokens=ask.n_new, ignore_eos=True)
        message = Submit(name, pack_ids(ask.prompt), sampling)
        assert self._scheduler.submit(message, float(self._step)) is None
        self._open[name] = (session, Served(ask.prompt, []))

    def _note_holds(self, plan: StepPlan) -> None:
        """In the order in which the scheduler took and gave: see `Scheduler.plan`."""
        for name in plan.leaves:
            if name in self._open:  # retracted
                self._hold(name, 0)
        entering = {enter.request_id for enter in plan.enters}
        for chunk in plan.chunks:
            name, end = chunk.request_id, chunk.start + len(chunk.tokens)
            if name not in entering and end > len(self._open[name][1].prompt):
                self._hold(name, end)
        for enter in plan.enters:
            if enter.request_id not in self._admitted:
                self._admitted[enter.request_id] = len(self._admitted)
                self._run.served.append(self._open[enter.request_id][1])
            self._hold(enter.request_id, len(enter.prompt) + len(enter.output))

    def _hold(self, name: str, n_tokens: int) -> None:
        self._run.holds.append(Hold(self._admitted[name], n_tokens))

    def _carry_out(self, plan: StepPlan) -> None:
        news = [TokenLogprob(None, self._rng.randrange(VOCABULARY)) for _ in plan.chunks]
        result = StepResult(
            tuple(
                ChunkResult(new if chunk.samples else None)
                for chunk, new in zip(plan.chunks, news, strict=True)
            )
        )
        for message in self._scheduler.apply(plan, result, float(self._step)):
            if isinstance(message, Tokens):
                self._open[message.request_id][1].output.extend(message.token_ids)
            elif isinstance(message, Finished):
                self._end(message)

    def _end(self, message: Finished) -> None:
        session, served = self._open.pop(message.request_id)
        self._hold(message.request_id, 0)
        served.end, served.cached = message, message.cached_tokens
        try:
            self._wait(session, session.send(served.output))
        except StopIteration:
            return


def tokens(ids: Ids) -> "array[int]":
    """As the tree compares them."""
    return array("I", ids)
