"""What every grammar engine promises, on a vocabulary small enough to try every token.

The oracles: `accept` itself for a mask, re.fullmatch and interegular for regular expressions,
jsonschema for schemas, a matcher that replays from the start for rollback and forks.
"""

import importlib.util
import itertools
import json
import random
import re
from functools import cache

import hypothesis.strategies as st
import interegular
import jsonschema
import numpy as np
import pytest
from grammar_cases import CHOICES, EBNF, HOSTILE, LARK, NESTED, OBJECT, REGEXES, SCHEMAS, STRINGS
from hypothesis import given, settings
from small_vocabulary import SPECIALS, bits, small_vocabulary

from ramify.srt.constrained.base import GrammarError, compile_grammar
from ramify.srt.constrained.choose import load_backend
from ramify.srt.grammar import GrammarSpec

VOCABULARY = small_vocabulary()
ENGINES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
        ),
    )
    for name, package in (
        ("llguidance", "llguidance"),
        ("xgrammar", "xgrammar"),
        ("outlines", "outlines_core"),
    )
]
# What an engine refuses altogether; what it has is tried with every case.
WITHOUT = {
    "llguidance": {"structural_tag"},
    "xgrammar": {"lark"},
    "outlines": {"ebnf", "lark", "structural_tag"},
}
every_engine = pytest.mark.parametrize("engine", ENGINES)


@cache
def backend(engine):
    return load_backend(engine, VOCABULARY)


@cache
def compiled(engine, kind, text):
    return compile_grammar(backend(engine), GrammarSpec(kind, text))


def takes(engine, kind, text, output: str) -> bool:
    """Whether an output may be all that a grammar produces, written in the model's own tokens."""
    matcher = compiled(engine, kind, text).new_matcher()
    return all(map(matcher.accept, VOCABULARY.write(output))) and matcher.is_accepting()


def takes_masked(engine, kind, text, output: str) -> bool:
    """The same by masks alone, as a sampler sees it."""
    matcher = compiled(engine, kind, text).new_matcher()
    row = new_row()
    for token in VOCABULARY.write(output):
        matcher.fill(row)
        if token not in bits(VOCABULARY, row):
            return False
        assert matcher.accept(token)
    matcher.fill(row)
    return VOCABULARY.end_ids[0] in bits(VOCABULARY, row)


def new_row():
    return np.full(VOCABULARY.row_words, -1, np.int32)  # what `fill` finds must not matter


def allowed(matcher) -> list[int]:
    row = new_row()
    assert matcher.fill(row) == bool(row.any())
    return bits(VOCABULARY, row)


def check_place(matcher) -> list[int]:
    """Everything that holds wherever an output has got to. Returns the tokens that may come."""
    may = allowed(matcher)
    accepted = [i for i in range(VOCABULARY.size) if matcher.fork().accept(i)]
    forced = matcher.forced()
    assert set(may) <= set(accepted)
    assert forced or may == accepted
    ends = [i for i in may if i in VOCABULARY.end_ids]
    assert ends == (sorted(VOCABULARY.end_ids) if matcher.is_accepting() else [])
    assert all(VOCABULARY.pieces[i] for i in may if i not in ends)
    assert not matcher.fork().accept(VOCABULARY.size)
    assert not matcher.fork().accept(-1)
    if matcher.is_finished():
        assert may == ends
    walk = matcher.fork()
    for token in forced:
        assert token not in VOCABULARY.end_ids
        assert allowed(walk) == [token]
        assert walk.accept(token)
    return may


SAMPLES = [
    ("regex", r"(New|New York|New York City)"),
    ("regex", r"[0-9]+(\.[0-9]+)?"),
    ("regex", r"(é|日)+b?"),
    ("regex", r"name: [^a]{0,3}end"),
    ("json_schema", json.dumps(OBJECT)),
    ("json_schema", json.dumps(SCHEMAS[6][0])),
    ("json_schema", json.dumps(NESTED)),
    ("choice", json.dumps(CHOICES[0][0])),
    ("ebnf", EBNF[1][0]),
    ("ebnf", EBNF[4][0]),
    ("lark", LARK[0][0]),
]


def has(engine, kind) -> bool:
    return kind not in WITHOUT[engine]


def lacks(engine, schema: str) -> bool:
    """Whether a schema holds a keyword that this engine refuses, and others have."""
    return engine == "outlines" and any(key in schema for key in ("minimum", "$ref"))


def samples(engine) -> list[tuple[str, str]]:
    return [(k, text) for k, text in SAMPLES if has(engine, k) and not lacks(engine, text)]


@every_engine
@pytest.mark.parametrize("kind", ["regex", "json_schema", "choice", "ebnf", "lark"])
def test_a_mask_says_what_accept_says(engine, kind):
    for text in (text for k, text in samples(engine) if k == kind):
        draw = random.Random(text)
        for _ in range(3):
            matcher = compiled(engine, kind, text).new_matcher()
            for _ in range(12):
                may = check_place(matcher)
                going_on = [i for i in may if i not in VOCABULARY.end_ids]
                if not going_on:
                    break
                assert matcher.accept(draw.choice(going_on))


@every_engine
@pytest.mark.parametrize("regex", REGEXES)
def test_a_regex_takes_what_fullmatch_takes(engine, regex):
    wanted = [s for s in STRINGS if re.fullmatch(regex, s)]
    found = [s for s in STRINGS if takes(engine, "regex", regex, s)]
    assert found == wanted


@every_engine
@pytest.mark.parametrize("regex", REGEXES)
def test_a_sampler_can_write_all_that_a_regex_takes(engine, regex):
    wanted = [s for s in STRINGS if re.fullmatch(regex, s)][:12]
    assert [s for s in wanted if takes_masked(engine, "regex", regex, s)] == wanted


def small_regexes():
    """Small regular expressions over a, b, c and a dot."""
    atoms = st.sampled_from(["a", "b", "c", "[ab]", "[^a]", r"\."])
    return st.recursive(
        atoms,
        lambda inner: (
            st.tuples(inner, inner).map("".join)
            | st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})")
            | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}"])).map(
                lambda pair: f"({pair[0]}){pair[1]}"
            )
        ),
        max_leaves=6,
    )


SHORT = ["".join(s) for n in range(4) for s in itertools.product("abc.", repeat=n)]


@every_engine
@settings(max_examples=40)
@given(regex=small_regexes())
def test_a_random_regex_agrees_with_two_oracles(engine, regex):
    automaton = interegular.parse_pattern(regex).to_fsm().reduce()
    wanted = [s for s in SHORT if re.fullmatch(regex, s)]
    assert [s for s in SHORT if automaton.accepts(s)] == wanted
    assert [s for s in SHORT if takes(engine, "regex", regex, s)] == wanted


def forms(value) -> list[str]:
    """A value as JSON; an engine may write a constant without any white space."""
    return [
        json.dumps(value, ensure_ascii=False, separators=separators)
        for separators in ((", ", ": "), (",", ":"))
    ]


@every_engine
@pytest.mark.parametrize(("schema", "valid", "invalid"), SCHEMAS)
def test_a_schema_takes_what_is_valid(engine, schema, valid, invalid):
    text = json.dumps(schema)
    if lacks(engine, text):
        with pytest.raises(GrammarError, match="cannot enforce: minimum, maximum"):
            compiled(engine, "json_schema", text)
        return
    for value in valid:
        jsonschema.validate(value, schema)
        assert any(takes(engine, "json_schema", text, form) for form in forms(value)), value
    for value in invalid:
        assert not jsonschema.Draft202012Validator(schema).is_valid(value)
        assert not any(takes(engine, "json_schema", text, form) for form in forms(value)), value


@every_engine
def test_white_space_is_written_one_way(engine):
    text = json.dumps({**OBJECT, "properties": {"name": {"const": "a"}, "age": {"const": 1}}})
    compact = engine == "outlines"
    assert takes(engine, "json_schema", text, '{"name": "a", "age": 1}') == (not compact)
    assert takes(engine, "json_schema", text, '{"name":"a","age":1}') == compact
    for other in ('{ "name": "a", "age": 1}', '{"name": "a",  "age": 1}', '{"name":"a" ,"age":1}'):
        assert not takes(engine, "json_schema", text, other)


@every_engine
@pytest.mark.parametrize(("kind", "cases"), [("ebnf", EBNF), ("lark", LARK)])
def test_a_grammar_takes_its_language(engine, kind, cases):
    for text, valid, invalid in cases if has(engine, kind) else ():
        assert [s for s in valid if not takes(engine, kind, text, s)] == []
        assert [s for s in valid if not takes_masked(engine, kind, text, s)] == []
        assert [s for s in invalid if takes(engine, kind, text, s)] == []


@every_engine
@pytest.mark.parametrize(("choices", "others"), CHOICES)
def test_a_choice_takes_each_and_nothing_else(engine, choices, others):
    text = json.dumps(choices)
    assert [s for s in choices if takes_masked(engine, "choice", text, s)] == choices
    assert [s for s in others if takes(engine, "choice", text, s)] == []


@every_engine
def test_a_special_token_is_no_text(engine):
    """Its name may be written, in ordinary tokens; the token itself would end or begin a turn."""
    for kind, text in (("regex", r"(.|\n)*"), ("json_schema", '{"type": "string"}')):
        matcher = compiled(engine, kind, text).new_matcher()
        if kind == "json_schema":
            assert matcher.accept(VOCABULARY.write('"')[0])
        ends = [i for i in allowed(matcher) if not VOCABULARY.pieces[i]]
        assert ends == (sorted(VOCABULARY.end_ids) if kind == "regex" else [])
    for name in SPECIALS:
        assert takes_masked(engine, "choice", json.dumps([name]), name)


@every_engine
def test_a_complete_output_goes_on_with_nothing_but_its_end(engine):
    matcher = compiled(engine, "regex", "ab").new_matcher()
    assert all(map(matcher.accept, (ord("a"), ord("b"))))
    assert matcher.is_finished()
    assert allowed(matcher) == sorted(VOCABULARY.end_ids)
    assert takes_masked(engine, "regex", ".|a", "\U0010ffff")


@every_engine
def test_nothing_comes_after_the_end(engine):
    matcher = compiled(engine, "regex", "ab?").new_matcher()
    assert not matcher.accept(VOCABULARY.end_ids[0])
    assert matcher.accept(ord("a"))
    assert matcher.is_accepting()
    assert not matcher.is_finished()
    assert matcher.accept(VOCABULARY.end_ids[1])
    assert matcher.is_accepting()
    assert matcher.is_finished()
    assert allowed(matcher) == []
    assert matcher.forced() == []
    assert not matcher.accept(VOCABULARY.end_ids[1])
    assert not matcher.accept(ord("b"))
    matcher.rollback(1)
    assert matcher.accept(ord("b"))
    assert matcher.is_finished()
    assert allowed(matcher) == sorted(VOCABULARY.end_ids)


def walk(matcher, draw, most: int) -> list[int]:
    """Accept up to `most` tokens that the masks allow, an end among them. Returns them."""
    taken = []
    for _ in range(most):
        may = allowed(matcher)
        if not may:
            break
        token = draw.choice(may)
        assert matcher.accept(token)
        taken.append(token)
    return taken


@every_engine
@given(data=st.data())
def test_taking_back_and_forking_lead_where_replaying_leads(engine, data):
    kind, text = data.draw(st.sampled_from(samples(engine)))
    grammar = compiled(engine, kind, text)
    draw = random.Random(data.draw(st.integers(0, 999)))
    matcher = grammar.new_matcher()
    taken = walk(matcher, draw, data.draw(st.integers(0, 10)))
    back = data.draw(st.integers(0, len(taken)))
    fork = matcher.fork()
    matcher.rollback(back)
    kept = taken[: len(taken) - back]
    more = walk(matcher, draw, 3)
    for place, path in ((fork, taken), (matcher, [*kept, *more])):
        replay = grammar.new_matcher()
        assert all(map(replay.accept, path))
        assert allowed(place) == allowed(replay)
        assert place.forced() == replay.forced()
        assert place.is_accepting() == replay.is_accepting()
        assert place.is_finished() == replay.is_finished()


@every_engine
def test_a_refused_token_changes_nothing(engine):
    matcher = compiled(engine, "regex", "ab+").new_matcher()
    refused = (ord("b"), VOCABULARY.end_ids[0], VOCABULARY.size + 5, 2**31)
    for _ in range(3):
        assert not any(map(matcher.accept, refused))
    assert matcher.accept(ord("a"))
    matcher.rollback(1)
    with pytest.raises(ValueError, match="accepted"):
        matcher.rollback(1)


INSIDES = re.compile(r"::|\.rs\b|\.cc\b|\.cpp\b|/home|<state>|panicked|0x[0-9a-f]{6}")


@every_engine
@pytest.mark.parametrize(("kind", "text", "code"), HOSTILE)
def test_a_bad_grammar_is_an_error_with_a_code(engine, kind, text, code):
    """A language with nothing in it is one: its mask would leave a sampler no token at all."""
    if not has(engine, kind):
        pytest.skip(f"{engine} has no {kind}")
    with pytest.raises(GrammarError) as caught:
        compile_grammar(backend(engine), GrammarSpec(kind, text))
    assert caught.value.code == ("unsupported_schema" if lacks(engine, text) else code)
    assert caught.value.message
    assert len(caught.value.message) < 400
    assert not INSIDES.search(caught.value.message)


@every_engine
def test_a_lenient_schema_names_what_it_lets_go(engine):
    """With `strict` the same schema is refused, naming the same keyword."""
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2, "uniqueItems": True}
    text = json.dumps(schema)
    grammar = compile_grammar(backend(engine), GrammarSpec("json_schema", text, strict=False))
    assert grammar.unenforced == ("uniqueItems",)
    matcher = grammar.new_matcher()
    form = "[true,true]" if engine == "outlines" else "[true, true]"
    assert all(map(matcher.accept, VOCABULARY.write(form)))
    assert matcher.is_finished()
    with pytest.raises(GrammarError, match="uniqueItems"):
        compile_grammar(backend(engine), GrammarSpec("json_schema", text))
    assert compiled(engine, "json_schema", '{"type": "boolean"}').unenforced == ()


@every_engine
def test_what_an_engine_has_not_is_refused_by_name(engine):
    samples = dict(SAMPLES) | {"structural_tag": '{"type": "structural_tag", "format": {}}'}
    for kind in WITHOUT[engine]:
        with pytest.raises(GrammarError, match=engine):
            compile_grammar(backend(engine), GrammarSpec(kind, samples[kind]))


def test_an_output_that_spends_a_lexer_spends_it_for_no_other():
    """llguidance's matchers of one grammar share a lexer, and its limits."""
    grammar = compile_grammar(
        backend("llguidance"), GrammarSpec("regex", "a|b((a{100}){100}){100}")
    )
    before, greedy = grammar.new_matcher(), grammar.new_matcher()
    assert greedy.accept(ord("b"))
    for _ in range(2):  # the second time, the lexer that it was given is spent as well
        allowed(greedy)
        assert greedy.accept(ord("a"))
    for other in (before, grammar.new_matcher()):
        assert other.accept(ord("a"))
        assert other.is_finished()
