"""What the frontend measures of a sequence, and the page that Prometheus reads."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.frontend_api.metrics import Histogram, Metrics, families, text
from ramify.frontend_api.running import ClientGone
from ramify.srt.errors import Aborted, InvalidRequest, QueueFull, RequestError, Unavailable
from ramify.srt.messages import EngineStats, Finished, ModelInfo, Submit, Tokens, pack_ids
from ramify.srt.replies import ReplyAssembler
from ramify.srt.sampling_params import SamplingParams

INFO = ModelInfo(100, 64, (99,), "float32", "cpu", "Fake", 0, 64, 0.0)


def assembler() -> ReplyAssembler:
    return ReplyAssembler(Submit("r", pack_ids([1]), SamplingParams()), None, INFO, now=10.0)


def finished(reason="length", miss_reason=None) -> Finished:
    return Finished("r", reason, None, 1, 0, 3, 0, 0.25, 0.0, miss_reason)


def values(histogram: Histogram) -> dict[str, float]:
    return dict(histogram.samples())


def ended(metrics: Metrics) -> dict[str, int]:
    return {reason: count for reason, count in metrics.ended.items() if count}


def test_a_sequence_is_measured_from_its_messages():
    metrics, made = Metrics(), assembler()
    with metrics.watch(made) as watch:
        for ids, now in (([], 10.1), ([5], 10.5), ([6, 7], 10.7)):
            made.push(Tokens("r", ids, 0), now)
            watch.moved()
        made.push(finished(), 11.5)
        watch.moved()
    assert values(metrics.ttft_s)["_sum"] == pytest.approx(0.5), "a message without tokens is none"
    tokens = values(metrics.token_s)
    assert (tokens["_count"], tokens["_sum"]) == (2, pytest.approx(0.2))
    assert values(metrics.e2e_s)["_sum"] == pytest.approx(1.5)
    assert values(metrics.queue_s)["_sum"] == 0.25
    assert ended(metrics) == {"length": 1}


def test_a_sequence_without_tokens_has_no_first_one():
    metrics, made = Metrics(), assembler()
    with metrics.watch(made) as watch:
        made.push(finished("timeout"), 11.0)
        watch.moved()
    assert values(metrics.ttft_s)["_count"] == 0
    assert values(metrics.e2e_s)["_count"] == 1
    assert ended(metrics) == {"timeout": 1}


@pytest.mark.parametrize("left", [GeneratorExit, KeyboardInterrupt])
def test_a_sequence_whose_client_leaves_is_an_abort(left):
    metrics = Metrics()
    with pytest.raises(left), metrics.watch(assembler()):
        raise left
    assert ended(metrics) == {"abort": 1}


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("namespace", {"namespace": 1}),
        ("evicted", {"evicted": 1}),
        ("below threshold", {"below threshold": 1}),
        (None, {}),
        ("new", {}),
    ],
)
def test_misses_are_counted_by_reason(reason, counted):
    """Operators see also the reason that clients are not told."""
    metrics, made = Metrics(), assembler()
    with metrics.watch(made) as watch:
        made.push(finished(miss_reason=reason), 11.0)
        watch.moved()
    assert {name: count for name, count in metrics.misses.items() if count} == counted


def test_a_sequence_that_is_refused_has_not_ended():
    metrics = Metrics()
    with pytest.raises(QueueFull), metrics.watch(assembler()):
        raise QueueFull("full")
    assert ended(metrics) == {}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request"),
        (QueueFull("x"), "queue_full"),
        (Unavailable("x"), "unavailable"),
        (RequestError("x"), "internal"),
        (ZeroDivisionError(), "internal"),
        (ClientGone("x"), None),
        (Aborted("x"), None),
    ],
)
def test_errors_are_counted_by_kind(error, kind):
    metrics = Metrics()
    metrics.failed(error)
    assert {name: count for name, count in metrics.errors.items() if count} == (
        {kind: 1} if kind else {}
    )


@given(st.lists(st.floats(0, 10)))
def test_buckets_count_what_is_not_above_their_bound(given_values):
    bounds = (0.5, 1.0, 5.0)
    histogram = Histogram(bounds)
    for value in given_values:
        histogram.observe(value)
    found = values(histogram)
    for bound in (*bounds, math.inf):
        label = "+Inf" if bound == math.inf else bound
        assert found[f'_bucket{{le="{label}"}}'] == sum(v <= bound for v in given_values)
    assert found["_count"] == len(given_values)
    assert found["_sum"] == pytest.approx(sum(given_values))


def test_the_engines_numbers_are_there_when_it_answers():
    stats = EngineStats(1, 2, 100, 30, 50, 400, 7, 1000, 600, 300, 4, 80, 70, 30, 9, 8, 5, 25)
    lines = text(families(Metrics(), stats)).splitlines()
    for line in (
        "ramify:engine_up 1",
        'ramify:prompt_tokens_total{source="computed"} 400',
        'ramify:prompt_tokens_total{source="cached"} 600',
        'ramify:cached_tokens_total{source="device"} 500',
        'ramify:cached_tokens_total{source="host"} 70',
        'ramify:cached_tokens_total{source="disk"} 30',
        "ramify:host_pages 9",
        "ramify:disk_pages 8",
        "ramify:tier_losses_total 5",
        "ramify:generated_tokens_total 300",
        "ramify:jump_forward_tokens_total 25",
        "ramify:retractions_total 4",
        "ramify:evicted_tokens_total 80",
        "ramify:running_requests 1",
        "ramify:waiting_requests 2",
        "ramify:cached_tokens_held 400",
        'ramify:kv_pages{state="free"} 30',
        'ramify:kv_pages{state="evictable"} 50',
        'ramify:kv_pages{state="in_use"} 20',
    ):
        assert line in lines


def test_an_engine_that_does_not_answer_is_down_and_has_no_numbers():
    page = text(families(Metrics(), None))
    assert "ramify:engine_up 0\n" in page
    assert "prompt_tokens" not in page
    assert "ramify:requests_total" in page, "the frontend has its own"
