"""What a program says of the form of a text: one shape each, written as the server takes it; and
the regexes that come with the language, each against right texts and wrong ones."""

import calendar
import json
import random
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

sys.path.insert(0, str(Path(__file__).parent))
from pattern_texts import NAMES, PATTERNS

import ramify
import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.options import RUN_DEFAULTS
from ramify.lang.regexes import DATE, build_regex_from_object, example_schema, literal
from ramify.lang.schemas import closed


class Mood(Enum):
    calm = "calm"
    wild = "wild"


class Home(BaseModel):
    town: str
    floor: int = Field(default=0)


class Person(BaseModel):
    name: str
    age: int
    mood: Mood
    home: Home
    tags: list[str]
    nick: str | None = None


def sent(expression):
    """The sampling parameters of a generation."""
    return expression.options.over(RUN_DEFAULTS).sampling_params()


# --- gen ------------------------------------------------------------------------------------------


def test_a_schema_may_be_an_object_or_text():
    schema = {"type": "object", "properties": {"z": {}, "a": {"const": "é"}}}
    text = json.dumps(schema, ensure_ascii=False)
    assert sent(rl.gen("x", json_schema=schema))["json_schema"] == text
    assert sent(rl.gen("x", json_schema=text))["json_schema"] == text


@pytest.mark.parametrize("option", ["json_schema", "dtype"])
def test_a_model_class_is_its_schema_without_further_properties(option):
    """A small model goes on and on where it may; the class would drop what it adds."""
    params = sent(rl.gen("x", **{option: Person}))
    schema = json.loads(params["json_schema"])
    assert "dtype" not in params
    assert list(schema["properties"]) == ["name", "age", "mood", "home", "tags", "nick"]
    assert schema.pop("additionalProperties") is False
    assert schema["$defs"]["Home"].pop("additionalProperties") is False
    assert schema == Person.model_json_schema(), "and nothing else is changed"


def test_only_what_is_open_by_default_is_closed():
    inner = {"properties": {"a": {"enum": [{"properties": {}}]}}}
    shut = inner | {"additionalProperties": False}
    for free in (True, {"type": "integer"}):
        assert closed(inner | {"additionalProperties": free})["additionalProperties"] == free
    assert closed({"type": "object"}) == {"type": "object"}, "any object"
    assert closed({"items": inner, "anyOf": [inner, True]}) == {
        "items": shut,
        "anyOf": [shut, True],
    }
    assert closed({"additionalProperties": inner}) == {"additionalProperties": shut}
    assert closed({"$defs": {"properties": inner}}) == {"$defs": {"properties": shut}}
    parts = {"allOf": [inner, {"properties": {"b": {}}}]}
    assert closed(parts) == parts, "no instance would have the properties of both"


def test_the_value_of_a_model_is_its_text():
    text = '{"town": "Aba", "floor": 3}'
    engine = ScriptedEngine({"home: ": text})

    @rl.function
    def ask(s):
        s += "home: " + rl.gen("home", dtype=Home)

    state = ask.run(backend=engine)
    assert Home.model_validate_json(state["home"]) == Home(town="Aba", floor=3)
    assert json.loads(engine.requests[0]["sampling_params"]["json_schema"])["title"] == "Home"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"regex": "a", "json_schema": "{}"}, "regex and json_schema"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices"),
        ({"json_schema": Home, "choices": ["a"]}, "json_schema and choices"),
        ({"dtype": int, "choices": ["a"]}, "choices and dtype"),
        ({"dtype": int, "json_schema": "{}"}, "json_schema and dtype"),
        ({"dtype": Home, "json_schema": "{}"}, "takes the place of json_schema"),
        ({"dtype": Home, "regex": "a"}, "regex and json_schema"),
        ({"dtype": list}, "or a model class"),
        ({"json_schema": 5}, "JSON text, an object or a model class"),
        ({"json_schema": int}, "JSON text, an object or a model class"),
        ({"json_schema": {"enum": {1, 2}}}, "written as JSON"),
        ({"regex": "("}, "not a regular expression"),
    ],
    ids=str,
)
def test_a_text_has_one_shape_and_a_bad_one_is_told_at_the_call(shapes, message):
    with pytest.raises(ValueError, match=message):
        rl.gen("x", **shapes)


# --- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_a_pattern_takes_what_is_right_and_nothing_else(pattern):
    good, bad = (texts.split() for texts in PATTERNS[pattern])
    assert [text for text in good if not re.fullmatch(pattern, text)] == []
    assert [text for text in [*bad, "", " ", good[0] + "\n"] if re.fullmatch(pattern, text)] == []
    assert re.fullmatch(f"<{pattern}>", f"<{good[0]}>"), "it stays whole inside another"
    assert not re.search(r"\(\?[^:]|\\[1-9bBdDwWsS]|(?<!\\)[$](?!&)", pattern), "every dialect"


def test_a_date_is_a_day_that_there_is():
    pattern, days = re.compile(DATE), random.Random(0).sample(range(1, 10_000), 400)
    for year in [*days, 1900, 2000, 2024, 2100]:
        for month in range(14):
            last = calendar.monthrange(year, month)[1] if 1 <= month <= 12 else 0
            for day in (0, 1, last, last + 1, 28, 29, 30, 31, 32):
                text = f"{year:04}-{month:02}-{day:02}"
                assert bool(pattern.fullmatch(text)) == (1 <= day <= last), text


# --- objects --------------------------------------------------------------------------------------


def test_a_model_is_a_regex_of_its_json():
    pattern = re.compile(build_regex_from_object(Person))
    home = {"town": 'a "b" \\ é', "floor": -3}
    person = {"name": "Ada", "age": 36, "mood": "calm", "home": home, "tags": ["x", ""]}
    for one in (person, person | {"nick": None}, person | {"nick": "A", "tags": []}):
        text = json.dumps(one, ensure_ascii=False)
        assert pattern.fullmatch(text)
        Person.model_validate_json(text)
    assert pattern.fullmatch(json.dumps(person | {"home": {"town": "x"}})), "floor has a default"
    for wrong in (
        {"age": "36"},
        {"age": 36.5},
        {"mood": "sad"},
        {"tags": [1]},
        {"tags": "x"},
        {"nick": 5},
        {"home": {"floor": 1}},
        {"home": None},
        {"more": 1},
    ):
        assert not pattern.fullmatch(json.dumps(person | wrong)), wrong
    assert not pattern.fullmatch(json.dumps({k: v for k, v in person.items() if k != "age"}))
    assert not pattern.fullmatch(json.dumps(dict(reversed(person.items())))), "order is kept"
    assert build_regex_from_object(Person.model_json_schema()) == pattern.pattern
    assert build_regex_from_object(json.dumps(Person.model_json_schema())) == pattern.pattern
    assert build_regex_from_object(Home(town="x")) == build_regex_from_object(Home)


def subsets(names):
    return [[n for i, n in enumerate(names) if mask >> i & 1] for mask in range(2 ** len(names))]


@pytest.mark.parametrize("required", subsets("abcd"), ids=str)
def test_members_that_may_be_left_out_bring_their_comma(required):
    schema = {"type": "object", "properties": {n: {"type": "null"} for n in "abcd"}}
    pattern = re.compile(build_regex_from_object(schema | {"required": required}))
    for names in subsets("abcd"):
        text = json.dumps(dict.fromkeys(names))
        assert bool(pattern.fullmatch(text)) == (set(required) <= set(names)), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": "a.b"}, ['"a.b"'], ['"axb"']),
        ({"enum": [1, "x", None, {"a": [1]}]}, ["1", '"x"', "null", '{"a": [1]}'], ["2", "{}"]),
        ({"type": ["integer", "null"]}, ["5", "null"], ["true", ""]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"a\\n"'], ['"a"', '"abcd"']),
        ({"type": "string", "minLength": 1}, ['"a"'], ['""']),
        ({"type": "string"}, ['""', '"é\\""'], ['"\n"', '"a', '"\\"', '"\\x"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"']),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
            ["[true]", "[true, false]"],
            ["[]", "[true, true, true]", "[true,]"],
        ),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, ["[]"], ["[null]"]),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 3},
            ["[null, null, null]"],
            ["[]"],
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            ["{}", '{"a": 1, "b": 2}'],
            ['{"a": "x"}', "{1: 1}"],
        ),
        ({"type": "object"}, ["{}"], ['{"a": 1}']),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    ],
    ids=str,
)
def test_the_schemas_that_a_regex_can_hold(schema, good, bad):
    pattern = re.compile(build_regex_from_object(schema))
    assert [text for text in good if not pattern.fullmatch(text)] == []
    assert [text for text in bad if pattern.fullmatch(text)] == []


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "string", "pattern": "a"}, "pattern"),
        ({"type": "string", "format": "hostname"}, "hostname"),
        ({"type": "string", "format": "date", "maxLength": 3}, "maxLength"),
        ({"type": "object", "properties": {"x": {}}}, "#/properties/x"),
        ({"type": "array"}, "#"),
        ({"type": "object", "properties": {}, "minProperties": 2}, "minProperties"),
        ({"$ref": "#/$defs/x"}, r"\$ref"),
        ({"$ref": "http://x/y"}, r"\$ref"),
        ({"allOf": [{"type": "integer"}, {"type": "number"}]}, "allOf"),
        ({"$ref": "#/$defs/T", "$defs": {"T": {"anyOf": [{"$ref": "#/$defs/T"}]}}}, "holds itself"),
        ("not JSON", "not JSON"),
        ("[1]", "not a JSON object"),
        ([], "lists are not empty"),
        ({1, 2}, "JSON values"),
    ],
    ids=str,
)
def test_nothing_that_a_schema_asks_is_left_out(schema, names):
    with pytest.raises(ValueError, match=names):
        build_regex_from_object(schema)


def test_an_example_stands_for_those_like_it():
    example = {"name": "Ada", "age": 36, "score": 0.5, "on": True, "x": None, "l": [1, "a", 2]}
    pattern = re.compile(build_regex_from_object(example))
    assert pattern.fullmatch(json.dumps(example))
    assert pattern.fullmatch(json.dumps(example | {"name": "B", "l": ["x"]}))
    assert not pattern.fullmatch(json.dumps(example | {"on": 1}))
    assert not pattern.fullmatch(json.dumps({"name": "Ada"}))
    assert example_schema([1, 2]) == {"type": "array", "items": {"type": "integer"}}
    assert re.fullmatch(build_regex_from_object({"type": "a dog"}), '{"type": "a cat"}')


def test_white_space_may_be_a_pattern():
    pattern = build_regex_from_object({"a": 1, "b": [1]}, whitespace_pattern="[ \n]?")
    for text in ('{"a":1,"b":[1]}', '{ "a": 1,\n"b": [ 1, 2 ] }', '{\n"a":1, "b":[1]\n}'):
        assert re.fullmatch(pattern, text), text


def test_literals_are_themselves_in_every_dialect():
    text = "".join(map(chr, range(32, 127)))
    assert re.fullmatch(literal(text), text)
    assert "\\ " not in literal("a b"), "some engines take no escape that is not needed"


def test_they_are_found_where_programs_look_for_them():
    assert ramify.regexes.DATE == DATE
    assert ramify.build_regex_from_object is build_regex_from_object


def test_the_literals_of_a_model_keep_their_order():
    class Answer(BaseModel):
        verdict: Literal["yes", "no"]
        sure: bool

    assert build_regex_from_object(Answer) == (
        r'\{"verdict": (?:"yes"|"no"), "sure": (?:true|false)\}'
    )
