"""The language: programs of many model calls. Reading order and ownership: README.md beside this.

Imports no torch and nothing of the server; httpx, jinja2 and rich only when they are needed.
"""

from ramify.lang.backends.http import RuntimeEndpoint
from ramify.lang.backends.resolve import flush_cache, get_server_info, set_default_backend
from ramify.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from ramify.lang.errors import BackendError, ProgramError, UnknownVariable
from ramify.lang.global_config import global_config
from ramify.lang.primitives import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    select,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
)
from ramify.lang.program import SglFunction, function
from ramify.lang.state import ProgramState, ProgramStateGroup

__all__ = [
    "BackendError",
    "ProgramError",
    "ProgramState",
    "ProgramStateGroup",
    "RuntimeEndpoint",
    "SglFunction",
    "UnknownVariable",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "global_config",
    "greedy_token_selection",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]
