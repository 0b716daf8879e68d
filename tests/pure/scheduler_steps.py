"""A scheduler of any policy and the steps that the tests of policies take with it."""

from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import Finished, Submit, TokenLogprob, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, StepResult
from ramify.srt.scheduling.scheduler import Scheduler

PAGE = 4


def scheduler(policy, *, n_pages=64, step_tokens=16, running=1, bound=100, **more):
    limits = SchedulerLimits(
        n_pages * PAGE, (0,), step_tokens, running, 1000, bound, schedule_policy=policy, **more
    )
    return Scheduler(limits, PrefixCache(n_pages, PAGE))


def submit(request_id, ids, max_new=1, **more):
    return Submit(request_id, pack_ids(list(ids)), SamplingParams(max_new_tokens=max_new), **more)


def step(s):
    plan = s.plan(0.0)
    new = TokenLogprob(-1.0, 1)
    return plan, s.apply(plan, StepResult(tuple(ChunkResult(new) for _ in plan.chunks)), 0.0)


def order_of_ends(s):
    ended = []
    while not s.idle:
        ended += [m.request_id for m in step(s)[1] if isinstance(m, Finished)]
    return ended
