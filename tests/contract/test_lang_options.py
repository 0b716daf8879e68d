"""The language's options are the server's: same names, same defaults."""

import dataclasses

import msgspec

from ramify.lang.options import OPTION_NAMES, REQUEST_FIELDS, RUN_DEFAULTS
from ramify.srt import constraints
from ramify.srt.sampling_params import SamplingParams

# Known to the language, but not fields of the sampling parameters: constraints, which the server
# reads apart; dtype, which becomes one of them; and stop_regex, which it refuses by name.
CONSTRAINTS = {"regex", "json_schema", "stop_regex", "dtype"}


def test_every_option_is_one_of_the_servers():
    served = {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert set(OPTION_NAMES) - served == CONSTRAINTS | set(REQUEST_FIELDS)
    assert CONSTRAINTS - {"stop_regex", "dtype"} <= set(constraints.NAMES)


def test_defaults_agree_where_both_have_one():
    server = SamplingParams()
    for field in dataclasses.fields(RUN_DEFAULTS):
        value = getattr(RUN_DEFAULTS, field.name)
        if value is not None:
            assert getattr(server, field.name) == value, field.name
