"""What a program appends to its state: generations, selections, roles."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ramify.lang.choices import ChoicesSamplingMethod, token_length_normalized
from ramify.lang.ir import Expr, ExprList, Gen, RoleBegin, RoleEnd, Select, nodes_of
from ramify.lang.options import GenerateOptions, dtype_name
from ramify.lang.schemas import is_model, schema_text

GREEDY_UP_TO = 1e-5  # select is greedy: a higher temperature would be ignored, so it is refused


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | type | None = None,
) -> Gen | Select:
    """Text that the model writes here. Without a name it is appended and not kept.

    With `n` > 1 the value is a list of n texts, and the first of them is appended; it does not
    stream. With `choices` it is a `select`. At most one of `regex`, `json_schema` (text, an object,
    or a class such as a pydantic model) and `dtype` (`int`, `float`, `bool`, `str` or such a class)
    says what the text looks like; the value is the text. Raises ValueError for what cannot be.
    """
    if is_model(dtype):
        dtype, json_schema = None, _alone(dtype, json_schema)
    _check_one_shape(regex=regex, json_schema=json_schema, choices=choices, dtype=dtype)
    if choices:
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    options = GenerateOptions(
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens,
        n=n,
        stop=stop,
        stop_token_ids=stop_token_ids,
        stop_regex=stop_regex,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        ignore_eos=ignore_eos,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
        dtype=dtype_name(dtype),
        regex=_checked(regex, dtype),
        json_schema=schema_text(json_schema),
    )
    return Gen(name, options)


def _alone(dtype: Any, json_schema: Any) -> Any:
    """A model class as the schema that it stands for."""
    if json_schema is not None:
        raise ValueError("a model class as dtype takes the place of json_schema: give one")
    return dtype


def _check_one_shape(**shapes: Any) -> None:
    """Raises ValueError for two of them; a dtype beside a regex is for `_checked`."""
    given = [name for name, shape in shapes.items() if shape is not None]
    if len(given) > 1 and given != ["regex", "dtype"]:
        raise ValueError(f"{' and '.join(given)} are all given: a text has one shape")


def _checked(regex: str | None, dtype: type | str | None) -> str | None:
    """The regex, if it is one and no dtype takes its place."""
    if regex is None:
        return None
    if dtype is not None:
        warnings.warn("dtype takes the place of regex: give one of the two", stacklevel=3)
        return None
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"regex is not a regular expression: {error}") from error
    return regex


def gen_int(
    name: str | None = None, max_tokens: int | None = None, n: int | None = None, **options: Any
) -> Gen | Select:
    """A whole number that the model writes; takes the options of `gen`."""
    return gen(name, max_tokens, n=n, dtype=int, **options)


def gen_string(
    name: str | None = None, max_tokens: int | None = None, n: int | None = None, **options: Any
) -> Gen | Select:
    """A quoted string that the model writes; takes the options of `gen`."""
    return gen(name, max_tokens, n=n, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float | None = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> Select:
    """The one of `choices` that fits best here.

    Raises ValueError for no, empty or repeated choices, and for a temperature, as select is greedy.
    """
    if not choices or isinstance(choices, str):
        raise ValueError("select needs a list of choices")
    if any(not isinstance(choice, str) or not choice for choice in choices):
        raise ValueError("each choice of a select is a text that is not empty")
    if len(set(choices)) < len(choices):
        raise ValueError("the choices of a select differ from one another")
    if (temperature or 0.0) > GREEDY_UP_TO:
        raise ValueError(f"select takes the best choice: temperature must be 0, got {temperature}")
    return Select(name, tuple(choices), choices_method)


def _message(role: str, expr: Expr | None) -> ExprList:
    content = () if expr is None else nodes_of(expr)
    return ExprList((RoleBegin(role), *content, RoleEnd(role)))


def system(expr: Expr | None = None) -> ExprList:
    """A message of the system."""
    return _message("system", expr)


def user(expr: Expr | None = None) -> ExprList:
    """A message of the user."""
    return _message("user", expr)


def assistant(expr: Expr | None = None) -> ExprList:
    """A message of the assistant."""
    return _message("assistant", expr)


def system_begin() -> RoleBegin:
    """Opens a message of the system."""
    return RoleBegin("system")


def system_end() -> RoleEnd:
    """Closes a message of the system."""
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    """Opens a message of the user."""
    return RoleBegin("user")


def user_end() -> RoleEnd:
    """Closes a message of the user."""
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    """Opens a message of the assistant."""
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    """Closes a message of the assistant."""
    return RoleEnd("assistant")
