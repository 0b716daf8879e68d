"""What deciding costs with many requests waiting: time of plan and apply, for each queue policy.

    python benchmarks/scheduler_scale.py [--steps N]

256 requests run. Each ends after a few tokens, so several are admitted in every step; as many
arrive, so the queue keeps its length. Prompts of 512 tokens share 64 trunks of 256; a quarter
is of programs. The model is left out. The longest steps hold a full garbage collection of Python's.
"""

import statistics
import time

from measure import add, add_machine, argument

from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import Submit, TokenLogprob, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, StepPlan, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.scheduler import Scheduler

RUNNING, STEP_TOKENS, PAGE, N_PAGES = 256, 2048, 16, 40_000
TRUNKS, TRUNK, TAIL = 64, 256, 256
WAITING = (100, 1_000, 10_000)


def request(i: int) -> Submit:
    """One of 64 trunks, then a tail of its own; 8 to 71 new tokens."""
    trunk = [1 + (i % TRUNKS) * TRUNK + k for k in range(TRUNK)]
    tail = [40_000 + (i * 7919 + k * 31) % 30_000 for k in range(TAIL)]
    sampling = SamplingParams(max_new_tokens=8 + i * 37 % 64)
    program = f"program {i % 100}" if i % 4 == 0 else ""
    return Submit(
        str(i), pack_ids(trunk + tail), sampling, priority=i * 13 % 8 // 7, program_id=program
    )


def answer(plan: StepPlan) -> StepResult:
    token = TokenLogprob(-1.0, 1)
    return StepResult(tuple(ChunkResult(token if c.samples else None) for c in plan.chunks))


def measure(policy: str, waiting: int, steps: int) -> tuple[list[float], list[float], int]:
    """(seconds of each plan, seconds of each apply, requests admitted while measuring)."""
    limits = SchedulerLimits(
        context_length=8192,
        eos_token_ids=(0,),
        step_tokens=STEP_TOKENS,
        max_running_requests=RUNNING,
        max_queued_requests=100_000,
        starvation_bound=64,
        schedule_policy=policy,
    )
    scheduler = Scheduler(limits, PrefixCache(N_PAGES, PAGE))
    arrived = admitted = 0
    planned: list[float] = []
    applied: list[float] = []
    warm_up = 150
    for step in range(warm_up + steps):
        while len(scheduler.waiting) < waiting:
            assert scheduler.submit(request(arrived), 0.0) is None
            arrived += 1
        began = time.perf_counter()
        plan = scheduler.plan(0.0)
        decided = time.perf_counter()
        assert plan is not None
        result = answer(plan)
        doing = time.perf_counter()
        scheduler.apply(plan, result, 0.0)
        if step >= warm_up:
            planned.append(decided - began)
            applied.append(time.perf_counter() - doing)
            admitted += len(plan.enters)
    assert len(scheduler.running) > RUNNING // 2
    return planned, applied, admitted


def main() -> None:
    add_machine()
    steps = argument("steps", 300)
    for policy in POLICIES:
        for waiting in WAITING:
            planned, applied, admitted = measure(policy, waiting, steps)
            add(
                f"{policy}, {waiting:,} waiting: ms median (p99)",
                f"plan {_figures(planned)}   apply {_figures(applied)}   "
                f"{admitted / steps:.1f} admitted a step",
            )


def _figures(seconds: list[float]) -> str:
    p99 = statistics.quantiles(seconds, n=100)[98]
    return f"{1e3 * statistics.median(seconds):.2f} ({1e3 * p99:.2f})"


if __name__ == "__main__":
    main()
