"""Settings of the language for the whole process, under SGLang's names."""

from dataclasses import dataclass
from typing import Any


@dataclass
class GlobalConfig:
    """Read when a program starts; change them before.

    `verbosity` 2 prints the final text of each run. `enable_parallel_encoding` is accepted and
    changes nothing: a join is always exact, by text.
    """

    verbosity: int = 0
    default_backend: Any = None
    skip_special_tokens_in_output: bool = True
    spaces_between_special_tokens_in_out: bool = True
    enable_precache_with_tracing: bool = True
    enable_parallel_encoding: bool = True


global_config = GlobalConfig()
