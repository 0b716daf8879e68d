"""The language's constraints on the real model: in this process and over HTTP, and its patterns on
the real vocabulary."""

import json
import re
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

sys.path.insert(0, str(Path(__file__).parents[1] / "pure"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import serving
from pattern_texts import NAMES, PATTERNS

import ramify.lang as rl
from ramify.lang.regexes import DATE, build_regex_from_object
from ramify.srt.constrained.base import compile_grammar
from ramify.srt.constrained.choose import load_backend
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.engine import Engine
from ramify.srt.errors import InvalidRequest
from ramify.srt.grammar import GrammarSpec
from ramify.srt.tokenization.tokenizer import Tokenizer

pytestmark = pytest.mark.model

SMALL = {"max_total_tokens": 8192}


class Port(BaseModel):
    name: str = Field(max_length=16)
    ships: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def engine(smollm2):
    with Engine("smollm2", threads=1, **SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def endpoint(smollm2):
    with serving.endpoint(None, "--threads", "1", "--max-total-tokens", "8192") as running:
        yield running


@pytest.fixture(params=["engine", "endpoint"])
def backend(request):
    return request.getfixturevalue(request.param)


@rl.function
def form(s):
    s += "A harbour in JSON: " + rl.gen("port", dtype=Port, max_tokens=60)
    s += "\nFounded on " + rl.gen("date", regex=DATE)
    s += "\nHarbour pilots: " + rl.gen_int("pilots", max_tokens=4)
    s += "\nDepth in metres: " + rl.gen("depth", dtype=float, max_tokens=6)
    s += "\nOpen at night: " + rl.gen("open", dtype=bool)
    s += "\nMotto: " + rl.gen_string("motto", max_tokens=12)
    s += "\nIt is " + rl.gen("kind", choices=["safe", "dangerous"])
    s += "\nAs a list: " + rl.gen("list", regex=build_regex_from_object([1]), max_tokens=12)


def test_every_shape_of_a_text(backend):
    state = form.run(backend=backend, temperature=0.8)
    Port.model_validate_json(state["port"])
    assert re.fullmatch(DATE, state["date"])
    int(state["pilots"])
    float(state["depth"])
    assert state["open"] in ("True", "False")
    assert re.fullmatch(r'"[\w\s]*"?', state["motto"])
    assert state["kind"] in ("safe", "dangerous")
    assert state["list"].startswith("[")
    meta = state.get_meta_info("port")
    assert meta["finish_reason"]["type"] == "stop"
    assert meta["jump_forward_tokens"] > 4
    assert meta["unenforced_keywords"] == []


def test_in_process_and_over_http_a_greedy_output_is_the_same(engine, endpoint):
    texts = [form.run(backend=one, temperature=0.0).text() for one in (engine, endpoint)]
    assert texts[0] == texts[1]


def test_a_constrained_text_streams(backend):
    @rl.function
    def one(s):
        s += "A harbour in JSON: " + rl.gen("port", json_schema=Port, max_tokens=60)

    state = one.run(backend=backend, stream=True, temperature=0.0)
    pieces = list(state.text_iter("port"))
    assert len(pieces) > 2
    assert "".join(pieces) == state["port"]
    Port.model_validate_json(state["port"])


def test_a_constraint_that_cannot_be_is_the_programs_error(backend):
    @rl.function
    def bad(s):
        s += "x" + rl.gen("x", json_schema={"type": "object", "uniqueItems": True, "not": {}})

    state = bad.run(backend=backend)
    with pytest.raises(rl.ProgramError, match="cannot be enforced"):
        _ = state["x"]


def test_the_engine_takes_one_constraint_for_each_prompt(engine):
    each = [
        {"temperature": 0.0, "max_new_tokens": 20, **constraint}
        for constraint in ({"regex": "[0-9]{4}"}, {}, {"json_schema": {"const": ["a", 1]}})
    ]
    one, two, three = engine.generate(["In the year ", "Hello", "A list: "], each)
    assert re.fullmatch("[0-9]{4}", one["text"])
    assert two["meta_info"]["completion_tokens"] > 1
    assert json.loads(three["text"]) == ["a", 1]
    for bad, param in (({"regex": "a", "ebnf": "b"}, "regex"), ({"regex": "(?=a)"}, "regex")):
        with pytest.raises(InvalidRequest) as caught:
            engine.generate("x", bad)
        assert caught.value.param == param


@pytest.fixture(scope="module")
def vocabulary(smollm2):
    return Vocabulary.of(Tokenizer.load(smollm2.path))


@pytest.fixture(scope="module")
def llguidance(vocabulary):
    return load_backend("llguidance", vocabulary)


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_a_pattern_means_the_same_to_an_engine(llguidance, vocabulary, pattern):
    """`re` has judged these texts already; here token by token, on the real vocabulary."""
    grammar = compile_grammar(llguidance, GrammarSpec("regex", pattern))

    def takes(text):
        matcher = grammar.new_matcher()
        return all(map(matcher.accept, vocabulary.write(text))) and matcher.is_accepting()

    good, bad = (texts.split() for texts in PATTERNS[pattern])
    assert [text for text in good if not takes(text)] == []
    assert [text for text in bad if takes(text)] == []
