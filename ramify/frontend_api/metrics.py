"""What is counted and measured here, and all metrics as text in Prometheus's format 0.0.4.

    a sequence moves on   Watch.moved     --> histograms; at its end, its finish reason
    a request fails       Metrics.failed  --> errors by kind
    a scrape              families, text  --> the page, with the engine's own counters

Every value of a label is written in this file: nothing that a client sends becomes one, so nobody
can make the number of series grow.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ramify.srt.errors import QueueFull, RequestError, Unavailable
from ramify.srt.messages import EngineStats
from ramify.srt.replies import ABORTED, ReplyAssembler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REASONS = ("stop", "length", "abort", "timeout")
# Those of PrefixCache.miss_reason.
MISSES = ("never seen", "evicted", "namespace", "below threshold")
KINDS = ("invalid_request", "unauthorized", "queue_full", "unavailable", "internal")
UNAUTHORIZED = 401
CLIENT_ENDED = 499  # status of an error that the client caused by leaving: nobody was refused
WHOLE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


# --- measuring ----------------------------------------------------------------------------------


class Histogram:
    """Counts values in fixed buckets; a value on a bound belongs to the bucket below it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def samples(self) -> list[tuple[str, float]]:
        """The series of the format, whose buckets are cumulative."""
        made: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            below += count
            made.append((f'_bucket{{le="{bound}"}}', below))
        return [*made, ("_sum", self._sum), ("_count", below)]


@dataclass(frozen=True)
class Metrics:
    """What this frontend has seen since it started."""

    ttft_s: Histogram = field(default_factory=lambda: Histogram(WHOLE_S))
    e2e_s: Histogram = field(default_factory=lambda: Histogram(WHOLE_S))
    queue_s: Histogram = field(default_factory=lambda: Histogram(WHOLE_S))
    token_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_S))
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    misses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MISSES, 0))

    @contextmanager
    def watch(self, reply: ReplyAssembler) -> Iterator["Watch"]:
        """Measure one sequence. Left before its end by its client, it counts as an abort."""
        with self.counted(lambda: [reply.finish_reason]):
            yield Watch(self, reply)

    @contextmanager
    def counted(self, reasons: Callable[[], Iterable[dict[str, Any] | None]]) -> Iterator[None]:
        """Count sequences by their finish reasons, unless they are refused; None is an abort."""
        refused = False
        try:
            yield
        except RequestError:
            refused = True
            raise
        finally:
            for reason in () if refused else reasons():
                given = reason or ABORTED
                self.ended[given.get("err_type", given["type"])] += 1

    def missed(self, reason: str | None) -> None:
        """Count a sequence, or a search, whose prompt was not found whole."""
        if reason in MISSES:
            self.misses[reason] += 1

    def failed(self, error: Exception) -> None:
        """Count a request that is answered with an error."""
        status = error.status if isinstance(error, RequestError) else 500
        if isinstance(error, QueueFull):
            self.errors["queue_full"] += 1
        elif isinstance(error, Unavailable):
            self.errors["unavailable"] += 1
        elif status == UNAUTHORIZED:
            self.errors["unauthorized"] += 1
        elif status != CLIENT_ENDED:
            self.errors["invalid_request" if status < 500 else "internal"] += 1


class Watch:
    """The times between the messages of one sequence."""

    def __init__(self, metrics: Metrics, reply: ReplyAssembler) -> None:
        self._metrics, self._reply = metrics, reply
        self._tokens = 0
        self._last_s = 0.0

    def moved(self) -> None:
        """A message was folded into the reply."""
        metrics, reply, now_s = self._metrics, self._reply, self._reply.elapsed_s
        new = len(reply.output_ids) - self._tokens
        if new and self._tokens:
            metrics.token_s.observe((now_s - self._last_s) / new, new)
        elif new:
            metrics.ttft_s.observe(now_s)
        if new:
            self._tokens += new
            self._last_s = now_s
        if reply.finished is not None:
            metrics.e2e_s.observe(now_s)
            metrics.queue_s.observe(reply.finished.queue_s)
            metrics.missed(reply.finished.miss_reason)


# --- telling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One metric. Samples are what comes after its name (suffix and labels), and a value."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[str, float]]


def families(metrics: Metrics, stats: EngineStats | None) -> list[Family]:
    """All metrics. Without `stats` the engine counts as down, and its own metrics are left out."""
    up = [("", int(stats is not None))]
    return [
        Family("engine_up", "gauge", "Whether the engine answers.", up),
        Family(
            "requests_total",
            "counter",
            "Sequences that have ended, by finish reason; those of health checks too.",
            _labelled("finish_reason", metrics.ended),
        ),
        Family(
            "request_errors_total",
            "counter",
            "Requests answered with an error, by kind.",
            _labelled("kind", metrics.errors),
        ),
        Family(
            "cache_misses_total",
            "counter",
            "Sequences with prompt tokens that were not cached, by reason.",
            _labelled("reason", metrics.misses),
        ),
        _histogram("time_to_first_token_seconds", "Arrival to first token.", metrics.ttft_s),
        _histogram("inter_token_latency_seconds", "From a token to the next.", metrics.token_s),
        _histogram("e2e_request_latency_seconds", "Arrival to end.", metrics.e2e_s),
        _histogram("queue_time_seconds", "Waiting in the engine's queue.", metrics.queue_s),
        *([] if stats is None else _engine(stats)),
    ]


def _engine(stats: EngineStats) -> list[Family]:
    """The engine's counters, since it was last started, and its gauges."""
    used = stats.pages_total - stats.pages_free - stats.pages_evictable
    pages = {"free": stats.pages_free, "evictable": stats.pages_evictable, "in_use": used}
    computed = stats.prompt_tokens - stats.cached_tokens
    tokens = _labelled("source", {"computed": computed, "cached": stats.cached_tokens})
    host, disk = stats.host_tokens, stats.disk_tokens
    found = {"device": stats.cached_tokens - host - disk, "host": host, "disk": disk}
    counters = (
        ("generated_tokens_total", "Tokens generated.", stats.generated_tokens),
        ("jump_forward_tokens_total", "Given by grammars, not sampled.", stats.jump_forward_tokens),
        ("retractions_total", "Requests put back to make room.", stats.retractions),
        ("evicted_tokens_total", "Tokens evicted from the cache.", stats.evicted_tokens),
        ("tier_losses_total", "Pages not kept, and files not usable.", stats.tier_losses),
    )
    gauges = (
        ("running_requests", "Requests that are computed now.", stats.running),
        ("waiting_requests", "Requests that wait.", stats.waiting),
        ("cached_tokens_held", "Tokens that the cache holds.", stats.cached_tokens_held),
        ("host_pages", "Pages in host memory.", stats.host_pages),
        ("disk_pages", "Pages on disk.", stats.disk_pages),
    )
    return [
        Family("prompt_tokens_total", "counter", "Prompt tokens, by where from.", tokens),
        Family(
            "cached_tokens_total",
            "counter",
            "Cached prompt tokens, by where they were.",
            _labelled("source", found),
        ),
        *(Family(name, "counter", text, [("", value)]) for name, text, value in counters),
        *(Family(name, "gauge", text, [("", value)]) for name, text, value in gauges),
        Family("kv_pages", "gauge", "Pages of the KV cache.", _labelled("state", pages)),
    ]


def text(given: Iterable[Family]) -> str:
    """The page that a scrape gets. No label and no help text here needs escaping."""
    lines = []
    for family in given:
        name = f"ramify:{family.name}"
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
        lines += [f"{name}{series} {value}" for series, value in family.samples]
    return "\n".join(lines) + "\n"


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    return Family(name, "histogram", text, histogram.samples())


def _labelled(label: str, values: dict[str, int]) -> list[tuple[str, float]]:
    return [(f'{{{label}="{value}"}}', count) for value, count in values.items()]
