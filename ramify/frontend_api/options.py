"""Command-line options made from the fields of the config classes: written once, never repeated."""

import argparse
import dataclasses
import json
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ramify.srt.sampling_params import SamplingParams

_Config = TypeVar("_Config")


def add_config(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add `--name` for every field of a dataclass that has option metadata, under its group."""
    hints = get_type_hints(config)
    groups: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        if "group" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title))
        text = item.metadata["help"] + _default(item.default)
        _add(group, item.name, hints[item.name], text, item.metadata["choices"])


def add_sampling(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add `--name` for every sampling option; `defaults` take the place of its own."""
    group = parser.add_argument_group("sampling")
    hints = get_type_hints(SamplingParams)
    for item in msgspec.structs.fields(SamplingParams):
        own = item.default if item.default is not msgspec.NODEFAULT else item.default_factory()
        default = defaults.get(item.name, own)
        _add(group, item.name, hints[item.name], f"default {json.dumps(default)}", None)
    parser.set_defaults(**defaults)


def take(config: type[_Config], parsed: argparse.Namespace, **fixed: Any) -> _Config:
    """A `config` from what was given on the command line; `fixed` comes on top."""
    names = [item.name for item in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**given(names, parsed) | fixed)


def sampling_given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, by name."""
    return given(SamplingParams.__struct_fields__, parsed)


def given(names: Iterable[str], parsed: argparse.Namespace) -> dict[str, Any]:
    """Options that were given: those left out keep the default of their class."""
    return {name: getattr(parsed, name) for name in names if name in parsed}


def _add(group: Any, name: str, hint: Any, text: str, choices: tuple[str, ...] | None) -> None:
    flag = "--" + name.replace("_", "-")
    keep: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    base = _base(hint)
    if base is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **keep)
    elif get_origin(base) is tuple:
        item = get_args(base)[0]
        group.add_argument(
            flag, nargs="+", type=item, action=_AsTuple, metavar=_metavar(item), **keep
        )
    elif get_origin(base) is dict:
        group.add_argument(flag, type=_bias, metavar="JSON", **keep)
    elif choices:
        group.add_argument(flag, choices=choices, **keep)
    else:
        group.add_argument(flag, type=base, metavar=_metavar(base), **keep)


class _AsTuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _base(hint: Any) -> Any:
    """The type without `| None`."""
    if isinstance(hint, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    return hint


def _metavar(kind: Callable[[str], Any]) -> str:
    return {int: "N", float: "X"}.get(kind, "TEXT")  # type: ignore[call-overload, no-any-return]


def _default(value: Any) -> str:
    return "" if value is None or value is False else f" (default {value})"


def _bias(text: str) -> dict[int, float]:
    try:
        return msgspec.json.decode(text, type=dict[int, float])
    except msgspec.MsgspecError:
        raise argparse.ArgumentTypeError('takes JSON such as {"42": -1.5}') from None
