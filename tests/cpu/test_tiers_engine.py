"""Pages that leave the pool come back: from host memory, and from disk, also after a restart.

Deterministic mode: what was computed at another time, in another batch, has the same bits, so
equal tokens mean that the right pages came back.
"""

import logging
import sys
from pathlib import Path

import pytest

from ramify.srt.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from server_process import Server
from waiting import wait_until

pytestmark = pytest.mark.model

SYSTEM = [200 + k * k % 7000 for k in range(1000)]
GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
overlapping = pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
SOURCES = ("device", "host", "disk")


@pytest.fixture
def engine(tmp_path, smollm2):
    """Starts engines that share a folder, one after the other."""

    def start(**options):
        defaults = {"deterministic": True, "threads": 1, "disk_cache_dir": str(tmp_path)}
        return Engine("smollm2", **(defaults | options))

    return start


def ask(engine, ids):
    """(output ids, cached tokens by source)."""
    reply = engine.generate(input_ids=ids, sampling_params=GREEDY)
    details = reply["meta_info"]["cached_tokens_details"]
    assert sum(details.values()) == reply["meta_info"]["cached_tokens"]
    return reply["output_ids"], tuple(details[source] for source in SOURCES)


def sound(engine):
    info = engine.server_info()
    assert info["violations"] == []
    return info["stats"]


@overlapping
def test_a_known_system_prompt_is_a_hit_after_a_restart(engine, overlap):
    with engine(disk_cache_gb=0.1) as first:
        expected, cached = ask(first, [*SYSTEM, 7])
        assert cached == (0, 0, 0)
    with engine(disk_cache_gb=0.1, overlap=overlap) as second:
        assert ask(second, [*SYSTEM, 7]) == (expected, (0, 0, 1000))
        assert ask(second, [*SYSTEM, 8])[1] == (1000, 0, 0)
        assert sound(second)["disk_tokens"] == 1000


def test_files_that_are_not_sound_are_ignored_with_a_warning(engine, tmp_path, caplog):
    with engine(disk_cache_gb=0.1) as first:
        expected, _ = ask(first, [*SYSTEM, 7])
    files = sorted(p for p in tmp_path.glob("*/*") if not p.name.startswith("."))
    assert len(files) == 64  # 1,012 tokens computed, 16 to a page
    files[3].write_bytes(files[3].read_bytes()[:-100])
    flipped = bytearray(files[9].read_bytes())
    flipped[-1000] ^= 1
    files[9].write_bytes(flipped)
    (files[0].parent / "notes.txt").write_text("a file of somebody else")
    with caplog.at_level(logging.WARNING), engine(disk_cache_gb=0.1) as second:
        output, (_, _, from_disk) = ask(second, [*SYSTEM, 7])
        assert output == expected
        assert from_disk < 1000
        assert sound(second)["tier_losses"] > 0
    assert (files[0].parent / "notes.txt").exists()
    for name in (files[3].name, files[9].name, "notes.txt"):
        assert name in caplog.text


def test_evicted_pages_come_back_from_host_memory(engine):
    prompts = [[*SYSTEM[:300], 9, 9 + i, *SYSTEM[i * 20 : 150 + i * 20]] for i in range(6)]
    with engine() as roomy:
        expected = [ask(roomy, ids)[0] for ids in prompts]
    with engine(max_total_tokens=512, host_cache_gb=0.1) as small:
        for _ in range(2):
            answers = [ask(small, ids) for ids in prompts]
            assert [output for output, _ in answers] == expected
        assert all(sum(cached) == len(prompts[0]) - 1 for _, cached in answers)
        stats = sound(small)
        assert stats["host_tokens"] > 500
        assert stats["disk_tokens"] == 0


@overlapping
def test_a_retracted_request_is_swapped_back(engine, overlap):
    """What it had computed is loaded, so in all no more is computed than with all the memory."""
    prompts = [[300 + i, *(77 + k * i % 900 for k in range(12))] for i in range(24)]
    sampling = {"temperature": 0.0, "max_new_tokens": 90, "ignore_eos": True}
    with engine() as roomy:
        expected = roomy.generate(input_ids=prompts, sampling_params=sampling)
    with engine(max_total_tokens=640, host_cache_gb=0.2, overlap=overlap) as crowded:
        replies = crowded.generate(input_ids=prompts, sampling_params=sampling)
        stats = sound(crowded)
    assert [r["output_ids"] for r in replies] == [r["output_ids"] for r in expected]
    assert stats["retractions"] > 0
    assert stats["tier_losses"] == 0


def test_two_engines_do_not_share_a_folder(engine, caplog):
    with engine(disk_cache_gb=0.1), caplog.at_level(logging.WARNING):
        assert "without a disk cache" not in caplog.text
        with engine(disk_cache_gb=0.1) as second:
            assert "without a disk cache" in caplog.text
            assert ask(second, [5, 6, 7])[1] == (0, 0, 0)


def test_a_prompt_that_was_found_twice_survives_a_crash(tmp_path, smollm2):
    options = ("--disk-cache-gb", "0.1", "--disk-cache-dir", str(tmp_path), "--threads", "1")
    server = Server("smollm2", *options)
    bodies = [{"input_ids": [*SYSTEM, i], "sampling_params": GREEDY} for i in range(3)]
    for body in bodies[:2]:
        server.generate(**body)
    wait_until(lambda: len(list(tmp_path.glob("*/[0-9a-f]*"))) >= 62)
    server.kill()
    again = Server("smollm2", *options)
    details = again.generate(**bodies[2]).json()["meta_info"]["cached_tokens_details"]
    assert details["disk"] == 1000
    assert again.stats()["disk_tokens"] == 1000
    assert again.stop() == 0
