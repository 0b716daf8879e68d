"""Whatever a client sends as a constraint is one that can be sent on, or an error that names it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.frontend_api.errors import error_body
from ramify.frontend_api.structured import READERS, grammar_of
from ramify.srt.constrained.limits import LISTED, NAMED, ONE, TYPES
from ramify.srt.constraints import NAMES, from_options
from ramify.srt.errors import InvalidRequest
from ramify.srt.grammar import GrammarSpec
from ramify.srt.messages import Submit, decode_to_engine, encode
from ramify.srt.sampling_params import SamplingParams

KEYS = [*NAMED, *LISTED, *ONE, "type", "enum", "const", "$ref", "pattern", "required", "format"]
FIELDS = ["type", "json_schema", "name", "schema", "strict", "description", *TYPES]
OUTPUTS = ["json", "regex", "choice", "grammar", "structural_tag", "json_object"]
WORDS = [*KEYS, *FIELDS, *OUTPUTS, "json_object", "text", "#/$defs/a", "(", "\0", "\ud800"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
values = st.recursive(
    scalars | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=20,
)
texts = values.map(json.dumps)


def held(ask, fields):
    """What came of it crosses to the engine, or can be answered; nothing else is raised."""
    refused = None
    try:
        spec = ask(fields)
    except InvalidRequest as error:
        spec, refused = None, error
    if refused is not None:
        said = json.loads(json.dumps(error_body(refused)))["error"]
        assert said["param"]
        assert said["message"].startswith(said["param"])
    assert spec is None or isinstance(spec, GrammarSpec)
    message = Submit("r", b"", SamplingParams(), grammar=spec)
    assert decode_to_engine(encode(message)) == message
    return spec


@given(st.dictionaries(st.sampled_from(NAMES), values | texts, max_size=2))
def test_any_native_constraint(options):
    held(from_options, options)


@given(st.dictionaries(st.sampled_from([*READERS]), values | texts, max_size=2))
def test_any_constraint_of_an_openai_body(fields):
    held(grammar_of, fields)


named = st.fixed_dictionaries(
    {"name": st.just("n"), "schema": st.dictionaries(st.sampled_from(KEYS), values, max_size=3)},
    optional={"strict": st.booleans() | st.none(), "description": scalars},
)


@given(named)
def test_any_schema_of_a_response_format(schema):
    spec = held(grammar_of, {"response_format": {"type": "json_schema", "json_schema": schema}})
    if spec is not None:
        assert spec.strict is (schema.get("strict") is not False)
        assert json.loads(spec.text) == schema["schema"]


@pytest.mark.parametrize("read", [from_options, grammar_of])
def test_nothing_asks_for_nothing(read):
    assert read({}) is None
