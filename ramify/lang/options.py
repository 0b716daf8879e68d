"""How one generation wants its tokens chosen: declared once, merged as a whole.

Three layers, the later one wins field by field, and None means "not said":

    RUN_DEFAULTS  <-  options of `run`  <-  options of the `gen` call;   then the template's stops
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r'"[\w\d\s]*"'
DTYPES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> regex, further stops
    "int": (REGEX_INT, (" ", "\n")),
    "float": (REGEX_FLOAT, (" ", "\n")),
    "bool": (REGEX_BOOL, ()),
    "str": (REGEX_STR, ()),
}
REQUEST_FIELDS = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Options under the server's names. None: not said here."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    stop_regex: str | Sequence[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    dtype: str | None = None
    regex: str | None = None
    json_schema: str | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None

    def given(self) -> dict[str, Any]:
        """The options that were said, in the order of declaration."""
        values = ((name, getattr(self, name)) for name in OPTION_NAMES)
        return {name: value for name, value in values if value is not None}

    def over(self, defaults: "GenerateOptions") -> "GenerateOptions":
        """These options, with `defaults` where they say nothing."""
        return replace(defaults, **self.given())

    def with_stops(self, stops: Iterable[str]) -> "GenerateOptions":
        """The same with further stop strings, without doubles."""
        both = tuple(dict.fromkeys((*as_strings(self.stop), *stops)))
        return replace(self, stop=both or None)

    def sampling_params(self) -> dict[str, Any]:
        """The JSON object that a server takes as `sampling_params`; `dtype` becomes a regex."""
        options = self
        if self.dtype is not None:
            regex, stops = DTYPES[self.dtype]
            options = replace(self.with_stops(stops), regex=regex, dtype=None)
        said = options.given()
        return {name: _plain(said[name]) for name in said if name not in REQUEST_FIELDS}

    def request_fields(self) -> dict[str, Any]:
        """The options that stand beside `sampling_params` in a request."""
        said = self.given()
        return {name: said[name] for name in REQUEST_FIELDS if name in said}


OPTION_NAMES = tuple(item.name for item in fields(GenerateOptions))
RUN_DEFAULTS = GenerateOptions(
    max_new_tokens=128,
    n=1,
    temperature=1.0,
    top_p=1.0,
    top_k=-1,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    ignore_eos=False,
)


def as_strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, several or none, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def dtype_name(dtype: type | str | None) -> str | None:
    """`int`, `float`, `str`, `bool` or their names, as a name. Raises ValueError for another."""
    name = dtype.__name__ if isinstance(dtype, type) else dtype
    if name is not None and name not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)} or a model class, got {name!r}")
    return name


def _plain(value: Any) -> Any:
    """Tuples as lists, for JSON."""
    return list(value) if isinstance(value, tuple) else value
