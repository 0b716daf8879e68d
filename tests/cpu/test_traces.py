"""The real model, recorded, against the simulator: every count the same, on all four examples."""

import io
import os
import re
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import agent
import few_shot_eval
import role_play_chat
import serving
import tree_of_thought
from replay_trace import main, play_again
from server_process import Server

from ramify import Engine
from ramify.srt.errors import ConfigError
from ramify.srt.workers.trace import read

pytestmark = pytest.mark.model

POOL = 1280  # tokens: less than the examples need, so much of what they share is evicted
EXAMPLES = {
    role_play_chat: ["--users", "4", "--turns", "2", "--max-tokens", "16"],
    few_shot_eval: ["--shots", "8", "--limit", "12"],
    agent: ["--max-steps", "3"],
    tree_of_thought: ["--width", "3", "--depth", "2"],
}
COUNTS = (
    "request_id",
    "reason",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "retractions",
    "miss_reason",
)


class Recorded:
    """The four examples on one server: what they printed, what its engine counted, its trace."""

    def __init__(self, path, *options):
        self.printed, self.usage, self.requests = {}, {}, {}
        options = ("--threads", "1", "--max-total-tokens", str(POOL), *options)
        with (
            serving.server("--record-trace", str(path), *options) as url,
            serving.RuntimeEndpoint(url) as runs_on,
        ):
            for example, arguments in EXAMPLES.items():
                before = len(read(path).finished)
                with (
                    serving.metered(runs_on) as self.usage[example],
                    redirect_stdout(io.StringIO()) as printed,
                ):
                    assert example.main(["--url", url, *arguments]) == 0
                self.printed[example] = printed.getvalue()
                self.requests[example] = slice(before, len(read(path).finished))
            self.info = serving.get_server_info(runs_on)
        self.trace = read(path)
        self.replay = play_again(self.trace)

    def predicted(self, example):
        """Prompt, cached and generated tokens of an example's requests, by the simulator."""
        ends = self.replay.finished[self.requests[example]]
        return [(end.prompt_tokens, end.cached_tokens, end.completion_tokens) for end in ends]


@pytest.fixture(scope="module", params=[(), ("--overlap",)], ids=["in turn", "overlap"])
def recorded(request, smollm2, tmp_path_factory):
    return Recorded(tmp_path_factory.mktemp("traces") / "trace", *request.param)


def numbers(line):
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", line)]


def test_every_count_of_every_request_is_predicted(recorded):
    told, predicted = recorded.trace.finished, recorded.replay.finished
    assert len(told) > 90
    for name in COUNTS:
        assert [getattr(end, name) for end in predicted] == [getattr(end, name) for end in told]
    assert predicted == told, "the times too"
    assert recorded.replay.differs_at is None, "and each token in its step"


def test_the_engine_s_own_counters_are_predicted(recorded):
    stats = recorded.info["stats"]
    assert msgspec.structs.asdict(recorded.replay.stats) == stats
    assert recorded.replay.violations == recorded.info["violations"] == []
    assert stats["evicted_tokens"] > 1000
    assert (stats["stale_rows"] > 0) == recorded.info["overlap"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_an_example_measures_is_predicted(recorded, example):
    usage = recorded.usage[example]
    predicted = tuple(map(sum, zip(*recorded.predicted(example), strict=True)))
    assert (usage.prompt, usage.reused, usage.generated) == predicted
    assert 0 < usage.reused < usage.prompt


@pytest.mark.parametrize("example", [few_shot_eval, tree_of_thought])
def test_what_an_example_says_of_the_engine_is_predicted(recorded, example):
    printed = " ".join(recorded.printed[example].split())
    (said,) = re.findall(r"[\d,]+ prompt tokens: .* generated", printed)
    prompt, cached, generated = map(sum, zip(*recorded.predicted(example), strict=True))
    said = numbers(said)
    assert (said[0], said[1], said[3], said[4]) == (prompt, cached, prompt - cached, generated)


def test_what_the_chat_says_of_its_turns_is_predicted(recorded):
    rows = [row.split("│")[1:6] for row in recorded.printed[role_play_chat].splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[0].strip() != "all"]
    said = sorted(tuple(numbers(" ".join(row[2:]))) for row in rows)
    assert said == sorted((p, c, p - c) for p, c, _ in recorded.predicted(role_play_chat))


def test_what_the_agent_says_of_its_steps_is_predicted(recorded):
    rows = [numbers(row) for row in recorded.printed[agent].splitlines() if row[:1] == "│"]
    said = [(prompt, reused, computed) for _, prompt, reused, computed in rows]
    assert said == [(p, c, p - c) for p, c, _ in recorded.predicted(agent)]


def test_another_cache_is_predicted_to_give_other_numbers(recorded):
    """Else the tests above would compare nothing."""
    same, trace = recorded.replay.stats, recorded.trace
    smaller = play_again(trace, POOL - 128)
    assert smaller.differs_at is not None
    assert smaller.stats.cached_tokens < same.cached_tokens
    others = [play_again(trace, None, policy) for policy in ("lfu", "slru", "cost")]
    assert any(other.stats.evicted_tokens != same.evicted_tokens for other in others)


def test_the_command_takes_it(recorded, tmp_path, capsys):
    arguments = ["--pool", "1280", "4096", "--eviction-policy", "lru"]
    assert main([recorded.info["record_trace"], *arguments]) == 0
    told, table = capsys.readouterr().out.split("\n\n")
    stats = recorded.info["stats"]
    assert numbers(told)[2:4] == [stats["prompt_tokens"], stats["cached_tokens"]]
    assert told.endswith("the same in every call")
    assert [row.split()[0] for row in table.splitlines()[1:]] == ["1,280", "4,096"]


# --- where engines are made ----------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "host"), [(False, 0.0), (True, 0.0), (True, 0.05)])
def test_an_engine_in_this_process_records_too(smollm2, tmp_path, overlap, host):
    """Four times more than fits: requests are retracted, and that is predicted as well.

    So is what comes back from host memory.
    """
    path = tmp_path / "trace"
    prompts = [[100 + i, *range(200, 230)] for i in range(12)]
    options = {"threads": 1, "max_total_tokens": 256, "overlap": overlap, "host_cache_gb": host}
    with Engine("smollm2", record_trace=str(path), **options) as engine:
        engine.generate(input_ids=prompts, sampling_params={"max_new_tokens": 40})
        engine.pin_prefix(input_ids=prompts[-1], ttl_s=60)
        engine.generate(input_ids=prompts[:2], sampling_params={"max_new_tokens": 3})
        stats = engine.server_info()["stats"]
        replay = play_again(read(path))
    assert replay.differs_at is None
    assert msgspec.structs.asdict(replay.stats) == stats
    assert stats["retractions"] > 0
    assert (stats["host_tokens"] > 0) == (host > 0)


def test_a_trace_that_cannot_be_written_is_an_error_at_the_start(smollm2, tmp_path):
    with pytest.raises(ConfigError, match="record_trace must be a file that can be made"):
        Engine("smollm2", threads=1, max_total_tokens=256, record_trace=str(tmp_path))


def test_a_killed_engine_leaves_its_trace_and_the_next_one_begins_another(smollm2, tmp_path):
    path = tmp_path / "trace"
    server = Server("smollm2", "--max-total-tokens", "512", "--record-trace", str(path))
    try:
        asked = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 4}}
        assert server.generate(**asked).status_code == 200
        os.kill(child(server.process.pid), signal.SIGKILL)
        deadline = time.monotonic() + 60
        asked["input_ids"] = [5, 6, 7]
        while server.generate(**asked).status_code != 200:
            assert time.monotonic() < deadline, "no engine came back"
            time.sleep(0.1)
    finally:
        server.stop()
    for trace, n_prompt in ((read(path), 2), (read(f"{path}.1"), 3)):
        assert [end.prompt_tokens for end in trace.finished] == [n_prompt]
        assert play_again(trace).differs_at is None


def child(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    (found,) = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return int(found)
