"""JSON schemas as programs give them: text, objects, or classes that know their own."""

import json
from collections.abc import Mapping
from typing import Any

_NAMED = ("properties", "$defs", "patternProperties")  # hold schemas by name
_NESTED = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf")


def schema_text(schema: Any) -> str | None:
    """A JSON schema as text; None of None. The order of properties is kept: they come in it.

    Objects of a class hold the properties of the class and no others, unless it says that they may:
    the class would only drop them. Raises ValueError for what is no schema.
    """
    if schema is None or isinstance(schema, str):
        return schema
    if is_model(schema):
        schema = closed(schema.model_json_schema())
    if not isinstance(schema, Mapping):
        raise ValueError(f"json_schema is JSON text, an object or a model class, got {schema!r}")
    try:
        return json.dumps(schema, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"json_schema cannot be written as JSON: {error}") from error


def is_model(value: Any) -> bool:
    """Whether this is a class that knows its own schema, as pydantic's models do."""
    return isinstance(value, type) and hasattr(value, "model_json_schema")


def closed(schema: Any) -> Any:
    """The schema with objects of no other properties than they name, where it leaves that open.

    What `allOf` lists stays open: each of its schemas knows only a part of the properties.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in _NAMED:
        if key in made:
            made[key] = {name: closed(one) for name, one in made[key].items()}
    for key in _NESTED:
        if key in made:
            made[key] = closed(made[key])
    if "properties" in made:
        made.setdefault("additionalProperties", False)
    return made
