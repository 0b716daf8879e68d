"""Recorded traffic without a model: random days of all calls that a loop may make; simpler ones."""

import random
import sys
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from scripted_engine import cache

from ramify.srt.config import EngineConfig
from ramify.srt.execution.model_runner import Done
from ramify.srt.messages import ModelInfo, Pin, Submit, TokenLogprob, Unpin, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.workers.engine_core import EngineCore
from ramify.srt.workers.recorder import ReadClock, TraceRecorder
from ramify.srt.workers.trace import (
    VERSION,
    Header,
    TraceFile,
    read,
)

EOS, POOL, PAGE = 0, 192, 4


class DrawnTokens:
    """A runner whose tokens nobody can foresee: they depend on request, position and seed."""

    def __init__(self, seed):
        self.seed = seed

    def launch(self, plan):
        return Done(StepResult(tuple(self.result(chunk) for chunk in plan.chunks)))

    def result(self, chunk):
        end = chunk.start + len(chunk.tokens)
        token = crc32(f"{self.seed} {chunk.request_id} {end}".encode()) % 12
        scores = tuple(TokenLogprob(-1.0, target) for target in chunk.targets)
        return ChunkResult(TokenLogprob(-1.0, token) if chunk.samples else None, scores)


class RestlessClock:
    """Moves on by itself, so that no two looks at it are at the same time."""

    def __init__(self):
        self.time = 1000.0

    def now(self):
        self.time += 0.001
        return self.time


class Day:
    """Random calls of a recorded core, after a seed. Everything that a loop may call happens."""

    def __init__(self, seed, write, host_slots=0):
        self.rng = rng = random.Random(seed)
        self.clock = RestlessClock()
        policy = rng.choice(list(POLICIES))
        config = EngineConfig(
            page_size=PAGE,
            max_total_tokens=POOL,
            schedule_policy=policy,
            eviction_policy=rng.choice(["lru", "lfu", "cost"]),
            overlap=rng.random() < 0.5,
        )
        info = ModelInfo(12, POOL, (EOS,), "float32", "cpu", "drawn", 0, POOL, 0.0)
        limits = SchedulerLimits(POOL, (EOS,), 24, 5, 6, 4, schedule_policy=policy, mixed_tokens=9)
        self.header = Header(
            version=VERSION, config=config, info=info, limits=limits, host_slots=host_slots
        )
        scheduler = Scheduler(limits, cache(self.header, POOL, config.eviction_policy))
        clock = ReadClock(self.clock)
        core = EngineCore(scheduler, DrawnTokens(seed), info, clock, overlap=config.overlap)
        self.core = TraceRecorder(core, clock, write(self.header))
        self.n = 0

    def run(self):
        for _ in range(250):
            rng, roll = self.rng, self.rng.random()
            if roll < 0.24:
                self.submit()
            elif roll < 0.29:
                self.core.abort(f"r{rng.randrange(self.n + 1)}", self.clock.now())
            elif roll < 0.32:
                self.core.pin(Pin(7, pack_ids(self.prompt()), "", rng.uniform(0.01, 0.2)), 1000.0)
            elif roll < 0.34:
                self.core.unpin(Unpin(7, pack_ids(self.prompt()), ""), self.clock.now())
            elif roll < 0.35:
                self.core.flush()
            else:
                self.core.step()
        while not self.core.idle:
            self.core.step()
        for _ in range(3):
            self.core.step()
        self.core.flush()

    def prompt(self):
        trunk = random.Random(self.rng.randrange(3))
        n = self.rng.choice([8, 20, 40])
        return [trunk.randrange(12) for _ in range(n)] + [1] * self.rng.randrange(1, 6)

    def submit(self):
        rng = self.rng
        self.n += rng.random() < 0.95  # else an id that may have been in use before
        sampling = SamplingParams(
            max_new_tokens=rng.randrange(40),
            stop_token_ids=(rng.randrange(1, 12),),
            ignore_eos=rng.random() < 0.5,
            min_new_tokens=rng.choice([0, 3]),
            logit_bias={3: 0.5},
        )
        message = Submit(
            f"r{self.n}",
            pack_ids(self.prompt()),
            sampling,
            namespace=rng.choice(["", "", "b"]),
            logprob_start=rng.choice([-1, -1, 0, 5]),
            priority=rng.randrange(2),
            program_id=str(rng.randrange(3)),
            timeout_s=rng.choice([None, None, 0.05]),
            account=rng.choice(["", "x", "y"]),
        )
        self.core.submit(message, self.clock.now())


def recorded(path, seed):
    """A day, and its trace as it was read back."""
    day = Day(seed, lambda header: TraceFile(path, header).write, (0, 0, 12, 40)[seed % 4])
    day.run()
    return day, read(path)


def one_by_one(path, *prompts, host_slots=0):
    """A trace of requests each of which waited for the one before it."""
    day = Day(0, lambda header: TraceFile(path, header).write, host_slots)
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(max_new_tokens=4, ignore_eos=True)
        day.core.submit(Submit(f"r{number}", pack_ids(prompt), sampling), day.clock.now())
        while not day.core.idle:
            day.core.step()
    return read(path)
