"""ramify: write the branches, pay for the trunk once.

The public names, imported on first use so that `import ramify` stays light: the language needs
neither torch nor the server. Their homes: `ramify/lang` (the DSL), `ramify/srt` (the runtime).
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LANG = (
    "ProgramState",
    "RuntimeEndpoint",
    "SglFunction",
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
)
_SRT = {
    "Engine": "ramify.srt.engine",
    "EngineConfig": "ramify.srt.config",
    "SamplingParams": "ramify.srt.sampling_params",
    "beam_search": "ramify.srt.beam_search",
}
_REGEXES = "ramify.lang.regexes"
_HOME = dict.fromkeys(_LANG, "ramify.lang") | _SRT | {"build_regex_from_object": _REGEXES}
__all__ = sorted([*_HOME, "__version__", "regexes"])

if TYPE_CHECKING:
    from ramify.lang import *  # noqa: F403
    from ramify.lang import regexes as regexes
    from ramify.lang.regexes import build_regex_from_object as build_regex_from_object
    from ramify.srt.beam_search import beam_search as beam_search
    from ramify.srt.config import EngineConfig as EngineConfig
    from ramify.srt.engine import Engine as Engine
    from ramify.srt.sampling_params import SamplingParams as SamplingParams


def __getattr__(name: str) -> Any:
    if name == "regexes":
        return importlib.import_module(_REGEXES)
    if name not in _HOME:
        raise AttributeError(f"module 'ramify' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
