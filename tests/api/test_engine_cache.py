"""The calls of `Engine` about its cache and its scheduler, over a core without a model."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from byte_tokenizer import byte_tokenizer
from fake_core import FakeCore, Knobs

from ramify.srt.engine import Engine
from ramify.srt.errors import InvalidRequest, Unavailable


@pytest.fixture
def core():
    return FakeCore(Knobs(step_s=0.002, reject_at=9))


@pytest.fixture
def engine(core):
    with Engine.over(core, byte_tokenizer()) as made:
        yield made


def test_a_prefix_is_pinned_and_unpinned(engine, core):
    assert engine.pin_prefix("abc", ttl_s=60) == 3
    assert list(core.pinned) == [("", b"a\0\0\0b\0\0\0c\0\0\0")]
    assert engine.unpin_prefix(input_ids=[97, 98]) == 0
    assert engine.unpin_prefix(input_ids=list(b"abc")) == 3
    assert engine.pin_prefix(input_ids=[1], ttl_s=0.5, namespace="mine") == 1
    assert engine.unpin_prefix(input_ids=[1]) == 0
    assert engine.unpin_prefix(input_ids=[1], namespace="mine") == 1


def test_a_refused_pin_is_an_error_in_the_engines_words(engine):
    with pytest.raises(InvalidRequest, match="no more of the cache") as caught:
        engine.pin_prefix(input_ids=[9], ttl_s=1)
    assert caught.value.code == "pin_refused"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"ttl_s": 1}, "text"),
        ({"text": "a", "input_ids": [1], "ttl_s": 1}, "text"),
        ({"text": "", "ttl_s": 1}, "text"),
        ({"input_ids": [5000], "ttl_s": 1}, "input_ids"),
        ({"text": "a", "ttl_s": 1, "namespace": "x" * 257}, "namespace"),
        ({"text": "a", "ttl_s": 1, "namespace": None}, "namespace"),
        ({"text": "a", "ttl_s": math.nan}, "ttl_s"),
        ({"text": "a", "ttl_s": math.inf}, "ttl_s"),
        ({"text": "a", "ttl_s": 0}, "ttl_s"),
        ({"text": "a", "ttl_s": True}, "ttl_s"),
        ({"text": "a", "ttl_s": None}, "ttl_s"),
    ],
)
def test_a_bad_pin_is_refused_by_name(engine, arguments, param):
    with pytest.raises(InvalidRequest) as caught:
        engine.pin_prefix(**arguments)
    assert caught.value.param == param


def test_the_tree_is_shown_without_contents(engine):
    engine.pin_prefix(input_ids=[777], ttl_s=60, namespace="secret")
    tree = engine.cache_tree(limit=1)
    assert tree["total_nodes"] == 1
    assert (tree["nodes"][0]["tokens"], tree["nodes"][0]["namespace"]) == (1, 1)
    assert "777" not in str(tree)
    assert "secret" not in str(tree)


@pytest.mark.parametrize("limit", [0, 1001, 1.0, True, None, 10**30])
def test_a_bad_limit_of_the_tree_is_refused(engine, limit):
    with pytest.raises(InvalidRequest) as caught:
        engine.cache_tree(limit)
    assert caught.value.param == "limit"


def test_what_the_scheduler_reads_is_an_option_of_a_call(engine, core):
    fields = {"priority": 3, "program_id": "p", "timeout_s": 0.05}
    stream = engine.generate("a", {"max_new_tokens": 4000}, stream=True, **fields)
    next(stream)
    ((submit, _, _),) = core.running.values()
    assert {name: getattr(submit, name) for name in fields} == fields
    *_, last = stream
    assert last["meta_info"]["finish_reason"]["err_type"] == "timeout"
    with pytest.raises(InvalidRequest) as caught:
        engine.generate("a", timeout_s=math.nan)
    assert caught.value.param == "timeout_s"


def test_an_engine_that_has_ended_pins_nothing(core):
    engine = Engine.over(core, byte_tokenizer())
    engine.shutdown()
    with pytest.raises(Unavailable):
        engine.pin_prefix("a", ttl_s=1)
