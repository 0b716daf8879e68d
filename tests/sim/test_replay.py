"""Traces: what is recorded comes out of a replay again, call by call; and the files they are in."""

import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from recorded_days import PAGE, POOL, Day, one_by_one, recorded
from replay_trace import default_pools, main, play_again, play_elsewhere

from ramify.srt.errors import ConfigError
from ramify.srt.grammar import GrammarSpec
from ramify.srt.messages import Submit, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.workers.trace import (
    VERSION,
    AbortCall,
    FlushCall,
    IdleSteps,
    PinCall,
    StepCall,
    SubmitCall,
    TraceFile,
    UnpinCall,
    read,
)

# --- the same again ------------------------------------------------------------------------------

COUNTED = ("retractions", "evicted_tokens", "cached_tokens", "stale_rows", "host_tokens")


def test_a_replay_gives_the_same_in_every_call(tmp_path):
    """40 days with every kind of call, overlap on every second one, and all that can go wrong."""
    seen = Counter()
    for seed in range(40):
        day, trace = recorded(tmp_path / f"day{seed}", seed)
        replay = play_again(trace)
        stats, violations = day.core.inspect(check=True)
        where = f"seed {seed}"
        assert replay.differs_at is None, where
        assert replay.finished == trace.finished, where
        assert replay.stats == stats, where
        assert replay.violations == violations == [], where
        seen.update(type(call).__name__ for call in trace.calls)
        seen.update(end.reason for end in trace.finished)
        seen.update(end.miss_reason for end in trace.finished)
        seen.update(rejected=sum(getattr(call, "rejected", False) for call in trace.calls))
        seen.update(pinned=sum(call.tokens > 0 for call in trace.calls if type(call) is PinCall))
        seen.update({name: getattr(stats, name) for name in COUNTED})
    kinds = (SubmitCall, AbortCall, StepCall, IdleSteps, FlushCall, PinCall, UnpinCall)
    names = [kind.__name__ for kind in kinds]
    ends = ["stop", "length", "abort", "timeout", "never seen", "evicted", "rejected", "pinned"]
    assert min(seen[name] for name in [*names, *ends, *COUNTED]) >= 5, seen


def test_steps_of_an_idle_engine_are_one_line(tmp_path):
    day = Day(0, lambda header: TraceFile(tmp_path / "t", header).write)
    for _ in range(5):
        day.core.step()
    assert read(tmp_path / "t").calls == [], "as long as nothing follows"
    day.core.flush()
    assert read(tmp_path / "t").calls == [IdleSteps(5, day.clock.time), FlushCall(True)]


def test_another_cache_gives_something_else(tmp_path):
    """Or the comparison would not see what it is there for."""
    policies = pools = 0
    for seed in range(10):
        _, trace = recorded(tmp_path / f"day{seed}", seed)
        assert play_again(trace, POOL, trace.header.config.eviction_policy).differs_at is None
        policies += play_again(trace, POOL, "fifo").differs_at is not None
        pools += play_again(trace, POOL + PAGE).differs_at is not None
    assert policies >= 5
    assert pools >= 5


def test_one_wrong_count_is_found_where_it_is(tmp_path):
    _, trace = recorded(tmp_path / "day", 3)
    at = next(n for n, call in enumerate(trace.calls) if getattr(call, "ended", []))
    trace.calls[at].ended[0]["cached_tokens"] += 1
    assert play_again(trace).differs_at == at


# --- another cache for the same traffic ----------------------------------------------------------


A, B = list(range(40)), list(range(50, 90))


@pytest.mark.parametrize(
    ("pool", "host_slots", "hits"), [(48, 0, 0), (POOL, 0, 78), (48, 5, 40), (48, 40, 78)]
)
def test_what_another_cache_would_have_found_can_be_counted(tmp_path, pool, host_slots, hits):
    """12 pages hold one of the two prompts; with room for both, all but a last token is found."""
    trace = one_by_one(tmp_path / "t", A, B, A, B, host_slots=host_slots)
    outcome = play_elsewhere(trace, pool, "lru")
    assert sum(request.cached for request in outcome.served) == hits
    assert outcome.hit_rate == pytest.approx(100 * hits / 160)
    assert [request.prompt for request in outcome.served] == [A, B, A, B]


def test_nobody_comes_before_the_answers_that_came_before(tmp_path):
    """An engine that needs more steps than the recorded one is waited for: the second turn of a
    conversation finds the first answer, but for its last token."""
    (answer,) = (request.output for request in play_all(one_by_one(tmp_path / "t", A)))
    trace = one_by_one(tmp_path / "t.long", A, [*A, *answer, 1])
    trace.calls[:] = hurried(trace.calls)
    assert len(trace.calls) == 4
    assert [request.cached for request in play_all(trace)] == [0, len(A) + len(answer) - 1]


def hurried(calls):
    """As from an engine that answers everything in a single step."""
    tokens = {}
    for call in calls:
        if type(call) is not StepCall:
            yield call
            continue
        for request_id, new in call.tokens.items():
            tokens[request_id] = [*tokens.get(request_id, []), *new]
        if call.ended:
            yield msgspec.structs.replace(call, tokens=tokens)
            tokens = {}


def play_all(trace):
    return play_elsewhere(trace, POOL, "lru").served


def test_requests_get_the_tokens_that_they_got(tmp_path):
    """Also those that were stopped, aborted, late, or retracted on the way."""
    generated = 0
    for seed in range(20):
        _, trace = recorded(tmp_path / f"day{seed}", seed)
        outcome = play_elsewhere(trace, POOL, "slru")
        arrived = sum(type(call) is SubmitCall for call in trace.calls)
        assert len(outcome.served) + outcome.left_out == arrived
        assert {request.end.reason for request in outcome.served} == {"length"}
        told, again = Counter(), Counter()
        for end in trace.finished:
            told[end.request_id] += end.completion_tokens
        for request in outcome.served:
            again[request.end.request_id] += request.end.completion_tokens
            assert request.end.completion_tokens == len(request.output)
        assert +again == +told
        assert outcome.stats.generated_tokens == again.total()
        generated += again.total()
    assert generated > 2000


def test_the_command_prints_a_row_for_each_size_and_a_column_for_each_policy(tmp_path, capsys):
    one_by_one(tmp_path / "t", A, B, A, B)
    arguments = ["--pool", "40", "48", "192", "--eviction-policy", "fifo", "lru"]
    assert main([str(tmp_path / "t"), *arguments]) == 0
    told, table = capsys.readouterr().out.split("\n\n")
    assert "4 requests answered" in told
    assert "160 prompt tokens, 78 of them cached (48.8 %); 16 generated" in told
    assert told.endswith("replayed: the same in every call")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert rows == [
        ["40", "0.0", "0.0", "0.0", "4"],  # nobody fits
        ["48", "0.0", "0.0", "30.0", "0"],  # one of the two could have been kept, and nine tokens
        ["192", "48.8", "48.8", "48.8", "0"],
    ]


def test_what_no_replay_has_is_told(tmp_path, capsys):
    """Pages that came back from disk came from a place that these caches do not have."""
    one_by_one(tmp_path / "t", A)
    text = (tmp_path / "t").read_text().replace('"disk_cache_gb":0.0', '"disk_cache_gb":0.5')
    (tmp_path / "disk").write_text(text)
    for name, told in (("t", False), ("disk", True)):
        assert main([str(tmp_path / name), "--pool", "192"]) == 0
        assert ("here it has none" in capsys.readouterr().out) == told


def test_a_constrained_request_is_replayed_as_a_plain_one(tmp_path, capsys):
    one_by_one(tmp_path / "t", A)
    spec = '"grammar":{"kind":"regex","text":"a+","strict":true,"param":"regex"}'
    text = (tmp_path / "t").read_text()
    assert '"grammar":null' in text
    (tmp_path / "constrained").write_text(text.replace('"grammar":null', spec))
    for name, told in (("t", False), ("constrained", True)):
        assert main([str(tmp_path / name), "--pool", "192"]) == 0
        assert ("here forced tokens are steps" in capsys.readouterr().out) == told
    trace = read(tmp_path / "constrained")
    assert trace.calls[0].message.grammar == GrammarSpec("regex", "a+", True, "regex")
    assert len(play_elsewhere(trace, POOL, "lru").served) == 1


def test_sizes_begin_where_the_longest_request_fits(tmp_path):
    trace = one_by_one(tmp_path / "t", A, B)
    assert default_pools(trace) == [44, 88, 176, POOL]


def test_a_file_that_is_no_trace_is_told_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 1
    assert "No such file" in capsys.readouterr().err


# --- files ---------------------------------------------------------------------------------------


def header(path):
    return one_by_one(path, A).header


def test_only_its_owner_reads_a_trace_and_no_life_of_an_engine_overwrites_another(tmp_path):
    path = tmp_path / "t"
    traces = [one_by_one(path, A), one_by_one(path, A, B), one_by_one(path, A, B, A)]
    files = [path, tmp_path / "t.1", tmp_path / "t.2"]
    assert sorted(tmp_path.iterdir()) == files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert [len(trace.finished) for trace in traces] == [1, 1, 1], "the path names the first"
    assert [len(read(file).finished) for file in files] == [1, 2, 3]


def test_a_line_is_in_the_file_when_the_call_returns(tmp_path):
    day = Day(0, lambda header: TraceFile(tmp_path / "t", header).write)
    for n in range(1, 4):
        day.core.submit(Submit(f"r{n}", pack_ids(A), SamplingParams(max_new_tokens=1)), 0.0)
        assert [call.request["request_id"] for call in read(tmp_path / "t").calls][-1] == f"r{n}"


def test_a_trace_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "t"
    whole = one_by_one(path, A, B)
    for cut in (1, 40):
        path.write_bytes(path.read_bytes()[:-cut])
        assert read(path).calls == whole.calls[:-1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "holds no trace"),
        (["{}"], "line 1 of .* is not of a trace"),
        (['{"call":"flush","done":true}'], "line 1 of .*: a trace has one header"),
        (["HEADER", '{"call":"flush"}'], "line 2 of .* is not of a trace: .*`done`"),
        (["HEADER", "HEADER"], "line 2 of .*: a trace has one header"),
        (["OLDER"], f"of version 0, not {VERSION}"),
    ],
)
def test_what_is_no_trace_is_refused_in_words(tmp_path, lines, words):
    one_by_one(tmp_path / "t", A)
    first = (tmp_path / "t").read_text().splitlines()[0]
    older = first.replace(f'"version":{VERSION}', '"version":0')
    named = {"HEADER": first, "OLDER": older}
    text = "".join(f"{named.get(line, line)}\n" for line in lines)
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "bad")


@pytest.mark.parametrize("name", ["", "missing/t", "folder", "link"])
def test_a_path_that_cannot_be_a_new_file_is_an_error_of_the_option(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    known = header(tmp_path / "t")
    (tmp_path / "t").unlink()
    with pytest.raises(ConfigError, match="record_trace must be a file that can be made"):
        TraceFile(tmp_path / name if name else "", known)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_ends_the_trace_and_not_the_service(tmp_path):
    """Files of this process may not grow past 4 KiB: the engine goes on, the trace can be read."""
    script = f"""
import logging, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from recorded_days import one_by_one
logging.basicConfig(stream=sys.stdout)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
trace = one_by_one({str(tmp_path / "t")!r}, *[range(40)] * 50)
print(len(trace.finished), "recorded")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert "ends here" in said[0]
    assert 1 <= int(said[1].split()[0]) < 50
    assert (tmp_path / "t").stat().st_size <= 4096
