"""The engine's core around the scheduler: deadlines and pins as time passes, and what users see."""

import json
from concurrent.futures import Future

from ramify.radix_cache import eviction
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.clock import VirtualClock
from ramify.srt.config import EngineConfig
from ramify.srt.messages import (
    Finished,
    ModelInfo,
    Pin,
    ShowTree,
    Submit,
    TokenLogprob,
    Unpin,
    encode,
    pack_ids,
)
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import ChunkResult, StepResult
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.weights.source import prepare
from ramify.srt.workers.building import build_core
from ramify.srt.workers.engine_core import EngineCore

INFO = ModelInfo(100, 256, (0,), "float32", "cpu", "fake", 0, 256, 0.0)


class OneToken:
    """A runner that samples token 1 wherever a token is wanted."""

    def launch(self, plan):
        new = TokenLogprob(-1.0, 1)
        done = Future()
        done.set_result(
            StepResult(tuple(ChunkResult(new if c.samples else None) for c in plan.chunks))
        )
        return done


def core(**more):
    limits = SchedulerLimits(256, (0,), 32, 8, 100, 4)
    clock = VirtualClock()
    return EngineCore(Scheduler(limits, PrefixCache(64, 4, **more)), OneToken(), INFO, clock), clock


def generate(engine, request_id, ids, max_new=1, timeout_s=None):
    sampling = SamplingParams(max_new_tokens=max_new)
    message = Submit(request_id, pack_ids(ids), sampling, timeout_s=timeout_s)
    assert engine.submit(message, engine._clock.now()) is None


def finish_all(engine):
    ends = []
    while not engine.idle:
        ends += [m for m in engine.step() if isinstance(m, Finished)]
    return ends


def test_a_step_ends_what_is_past_its_deadline():
    engine, clock = core()
    generate(engine, "a", [1, 2, 3], max_new=100, timeout_s=1.0)
    engine.step()
    clock.advance(1.0)
    assert [m.reason for m in engine.step()] == ["timeout"]
    assert engine.idle


def test_a_pin_keeps_a_prefix_until_its_time_is_over_or_it_is_given_up():
    engine, clock = core()
    generate(engine, "a", range(1, 17))
    finish_all(engine)
    packed = pack_ids(range(1, 9))
    assert engine.pin(Pin(1, packed, "", 5.0), clock.now()).tokens == 8
    assert max(node.pins for node in engine.show_tree(ShowTree(2, 10)).nodes) == 1
    clock.advance(5.0)
    engine.step()  # nothing to compute, but time has passed
    assert max(node.pins for node in engine.show_tree(ShowTree(3, 10)).nodes) == 0
    assert engine.pin(Pin(4, packed, "", 5.0), clock.now()).tokens == 8
    assert engine.unpin(Unpin(5, packed, ""), clock.now()).tokens == 8
    assert engine.unpin(Unpin(6, packed, ""), clock.now()).tokens == 0


def test_a_pin_that_cannot_be_is_refused_in_words():
    engine, _ = core()
    assert "computed" in engine.pin(Pin(1, pack_ids([7]), "", 5.0), 0.0).error
    assert "4 bytes" in engine.pin(Pin(2, b"abc", "", 5.0), 0.0).error
    assert "4 bytes" in engine.unpin(Unpin(3, b"abc", ""), 0.0).error
    without, _ = core(reuse=False)
    assert "off" in without.pin(Pin(4, pack_ids([7]), "", 5.0), 0.0).error


def test_the_tree_is_shown_in_a_message_that_can_be_sent():
    engine, _ = core()
    generate(engine, "a", [1, 2, 3, 4, 5, 6])
    generate(engine, "b", [1, 2, 3, 9, 9, 9])
    finish_all(engine)
    shown = engine.show_tree(ShowTree(7, 2))
    assert (shown.call_id, shown.total, len(shown.nodes)) == (7, 3, 2)
    root = next(n for n in engine.show_tree(ShowTree(8, 10)).nodes if n.parent == 0)
    assert (root.token_ids, root.start, root.n_tokens) == ([1, 2, 3], 0, 3)
    assert encode(shown)


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
}


def test_the_options_reach_scheduler_and_cache(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    config = EngineConfig(
        dtype="float32",
        attention_backend="reference",
        max_total_tokens=320,
        schedule_policy="program",
        eviction_policy="cost",
        pin_share=0.5,
        max_queued_tokens=7,
        starvation_bound=5,
    )
    scheduler = build_core(config, prepare(f"dummy:{file}")).scheduler
    assert scheduler.policy is POLICIES["program"]
    assert (scheduler.limits.max_queued_tokens, scheduler.limits.starvation_bound) == (7, 5)
    assert scheduler.cache.tree.policy is eviction.cost
    assert scheduler.cache.pins.max_pages == scheduler.cache.pages.n_pages // 2 == 10
