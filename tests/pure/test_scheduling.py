"""The scheduler's rules one by one; the simulator covers their combinations."""

import itertools

import pytest

from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import Finished, Submit, TokenLogprob, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, StepResult
from ramify.srt.scheduling.request import TRANSITIONS, Event, IllegalEvent, Request, State
from ramify.srt.scheduling.scheduler import Scheduler

PAGE = 4


def scheduler(n_pages=64, step_tokens=16, running=8, queued=100, bound=4):
    limits = SchedulerLimits(n_pages * PAGE, (0,), step_tokens, running, queued, bound)
    return Scheduler(limits, PrefixCache(n_pages, PAGE))


def submit(request_id, ids, max_new=4, namespace=""):
    sampling = SamplingParams(max_new_tokens=max_new)
    return Submit(request_id, pack_ids(list(ids)), sampling, namespace)


def answer(plan, token=1):
    """A result in which every sampling chunk gets the same token."""
    new = TokenLogprob(-1.0, token)
    return StepResult(tuple(ChunkResult(new if c.samples else None) for c in plan.chunks))


def step(s, token=1):
    plan = s.plan(0.0)
    return plan, s.apply(plan, answer(plan, token), 0.0)


def finish_all(s):
    ended = []
    while not s.idle:
        ended += [m.request_id for m in step(s)[1] if isinstance(m, Finished)]
    return ended


@pytest.mark.parametrize(("state", "event"), [*itertools.product(State, Event)])
def test_every_pair_of_state_and_event_follows_the_table(state, event):
    request = Request(submit("a", [1]), 1, None, 1, 1, 0.0, state=state)
    if (state, event) in TRANSITIONS:
        request.on(event)
        assert request.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalEvent):
            request.on(event)
        assert request.state is state


def test_prefill_chunks_and_decode_rows_share_a_step():
    s = scheduler(step_tokens=10)
    s.submit(submit("short", [1, 2]), 0.0)
    step(s)
    s.submit(submit("long", range(30)), 0.0)
    plan, _ = step(s)
    assert [(c.request_id, c.start, len(c.tokens), c.samples) for c in plan.chunks] == [
        ("short", 2, 1, True),
        ("long", 0, 9, False),
    ]


def test_requests_wait_for_the_one_that_computes_their_trunk():
    """Sixteen arrive together under one trunk nobody has computed: it is computed once."""
    s = scheduler(n_pages=200, step_tokens=16, running=16)
    trunk = list(range(1, 41))
    for i in range(16):
        s.submit(submit(f"r{i}", [*trunk, 100 + i], max_new=1), 0.0)
    computed = 0
    while not s.idle:
        plan, _ = step(s)
        computed += plan.n_tokens
    assert computed == len(trunk) + 16
    assert s.stats().cached_tokens == 15 * len(trunk)


def test_the_cached_go_first_but_nobody_is_overtaken_beyond_the_bound():
    s = scheduler(running=1, bound=3)
    s.submit(submit("seed", range(1, 9), max_new=0), 0.0)
    finish_all(s)
    s.submit(submit("cold", [50, 51], max_new=0), 0.0)
    for i in range(6):
        s.submit(submit(f"warm{i}", [*range(1, 9), 60 + i], max_new=0), 0.0)
    assert finish_all(s) == ["warm0", "warm1", "warm2", "cold", "warm3", "warm4", "warm5"]


def test_when_pages_run_out_the_latest_arrival_is_retracted_and_resumes():
    s = scheduler(n_pages=6, step_tokens=16)
    for name in ("old", "new"):
        s.submit(submit(name, [ord(name[0])] * 4, max_new=16), 0.0)
    seen = {"old": 0, "new": 0}
    ends = {}
    while not s.idle:
        for message in step(s)[1]:
            if isinstance(message, Finished):
                ends[message.request_id] = message
            else:
                seen[message.request_id] += len(message.token_ids)
    assert seen == {"old": 16, "new": 16}
    assert ends["old"].retractions == 0
    assert ends["new"].retractions >= 1
    assert s.violations() == []


def test_a_full_queue_and_an_id_in_use_are_refused_by_name():
    s = scheduler(queued=2)
    assert s.submit(submit("a", [1]), 0.0) is None
    assert s.submit(submit("a", [1]), 0.0).param == "rid"
    assert s.submit(submit("b", [1]), 0.0) is None
    assert s.submit(submit("c", [1]), 0.0).kind == "QueueFull"


def test_a_request_that_can_never_fit_is_refused_at_once():
    s = scheduler(n_pages=4)
    rejected = s.submit(submit("a", range(10), max_new=7), 0.0)
    assert (rejected.kind, rejected.param) == ("InvalidRequest", "max_new_tokens")


def test_an_aborted_request_leaves_its_prefix_and_no_pages():
    s = scheduler()
    s.submit(submit("a", range(1, 21)), 0.0)
    step(s)
    (ended,) = s.abort("a", 1.0)
    assert (ended.reason, ended.prompt_tokens) == ("abort", 20)
    assert s.abort("a", 1.0) == []
    assert s.stats().cached_tokens_held == 16
    assert s.stats().pages_free + s.stats().pages_evictable == 64


def test_flush_is_refused_while_requests_run():
    s = scheduler()
    s.submit(submit("a", [1, 2, 3], max_new=1), 0.0)
    assert not s.flush()
    finish_all(s)
    assert s.flush()
    assert s.stats().cached_tokens_held == 0


def test_a_retracted_request_finds_what_it_had_computed():
    """Retraction publishes: while memory lasts, resuming computes next to nothing again."""
    s = scheduler(n_pages=12, step_tokens=32)
    s.submit(submit("old", [7] * 20, max_new=5), 0.0)
    s.submit(submit("new", [8] * 20, max_new=20), 0.0)
    for _ in range(4):
        step(s)
    computed = s.running["new"].computed
    s._retract(s.running["new"])  # as if pages had run out
    starts = []
    while not s.idle:
        plan, _ = step(s)
        starts += [chunk.start for chunk in plan.chunks if chunk.request_id == "new"]
    assert starts[0] == computed > 20  # generated tokens too
    assert len(starts) == len(set(starts))


def test_a_long_prompt_does_not_make_the_steps_of_others_long():
    """Beside a decoding request a prompt is computed in small pieces; alone, in large ones."""
    limits = SchedulerLimits(400, (0,), 32, 8, 100, 4, mixed_tokens=8)
    s = Scheduler(limits, PrefixCache(100, PAGE))
    s.submit(submit("chat", [1, 2], max_new=3), 0.0)
    step(s)
    s.submit(submit("long", range(10, 110), max_new=1), 0.0)
    sizes = []
    while not s.idle:
        plan, _ = step(s)
        sizes.append([len(c.tokens) for c in plan.chunks])
    assert sizes[:2] == [[1, 8], [1, 8]]
    assert sizes[2] == [32]


def test_pieces_get_smaller_with_the_depth_of_the_prompt_beside_others():
    """A token reads all that is before it: 4,096 tokens deep it takes twice the time of a first."""
    limits = SchedulerLimits(9000, (0,), 64, 8, 100, 4, mixed_tokens=40)
    s = Scheduler(limits, PrefixCache(9000 // PAGE, PAGE))
    s.submit(submit("chat", [1, 2], max_new=600), 0.0)
    step(s)
    s.submit(submit("long", range(10, 8010), max_new=1), 0.0)
    sizes = {}
    while sum(sizes.values()) < 8000:
        plan, _ = step(s)
        for chunk in plan.chunks:
            if chunk.request_id == "long":
                sizes[chunk.start] = len(chunk.tokens)
    assert sizes[0] == 40
    for start, size in list(sizes.items())[:-1]:
        assert 40 <= size * (4096 + start) / 4096 < 40 + (4096 + start) / 4096
