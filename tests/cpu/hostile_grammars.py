"""Grammars that somebody sends to hang, burst or break what compiles them or masks by them."""

import json
import random
import string
from itertools import pairwise

from ramify.srt.grammar import GrammarSpec


def words(n: int, length: int = 10) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices(string.ascii_uppercase, k=length)) for _ in range(n)]


def one_property(name: str, value, **more) -> dict:
    closed = {"type": "object", "additionalProperties": False, "required": [name]}
    return closed | {"properties": {name: value}} | more


def objects_in_objects(depth: int) -> dict:
    schema = {"type": "string"}
    for _ in range(depth):
        schema = one_property("a", schema)
    return schema


def arrays_in_arrays(depth: int, most: int) -> dict:
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": most}
    return schema


def any_of_any_of(depth: int, width: int) -> dict:
    schema = {"type": "string", "maxLength": 5}
    for level in range(depth):
        schema = {"anyOf": [one_property(f"k{level}_{i}", schema) for i in range(width)]}
    return schema


def ring(n: int) -> dict:
    """Definitions that are nothing but each other."""
    names = [f"d{i}" for i in range(n)]
    links = {a: {"$ref": f"#/$defs/{b}"} for a, b in pairwise([*names, names[0]])}
    return {"$defs": links, "$ref": "#/$defs/d0"}


def doubling(n: int) -> dict:
    """Each definition holds the next one twice: 2^n strings in 30 lines."""
    link = [{"$ref": f"#/$defs/d{i + 1}"} for i in range(n)]
    pair = {"type": "array", "minItems": 2, "items": False}
    defs = {f"d{i}": pair | {"prefixItems": [link[i], link[i]]} for i in range(n)}
    return {"$defs": defs | {f"d{n}": {"type": "string"}}, "$ref": "#/$defs/d0"}


REGEXES = {
    "stars in stars": r"(a+)+b",
    "many stars in a star": r"((a*)*)*" * 20,
    "a long repeat": r"a{1,100000}",
    "a repeat of repeats": r"(a{1,1000}){1,1000}",
    "a million in three": r"((a{100}){100}){100}",
    "which letter was it": r"(a|b)*a(a|b){20}",
    "where was the letter": r"(.*a){20}",
    "anything but": r"[^x]{1,5000}y",
    "any word": r"\w{1,1000}",
    "any class at all": r"[\s\S]{0,1000}[\w\W]{0,1000}[\d\D]{0,1000}",
    "8 KiB of alternatives": "|".join(words(740)),
    "8 KiB of overlapping prefixes": "|".join("a" * i for i in range(1, 127)),
    "10,000 words": "|".join(words(10_000)),
    "30,000 brackets": "(" * 30_000 + "a" + ")" * 30_000,
    "150 brackets with stars": "(" * 150 + "a" + "*)" * 150,
    "an open class": r"[a-z",
    "looking ahead": r"(?=a)b",
    "looking behind and back": r"(a)\1(?<=b)",
    "a NUL": "a\x00b",
    "half a character": "a\ud800",
    "nothing matches": r"[^\s\S]",
    "an end in the middle": r"a$b^c",
    "every letter there is": r"\p{L}{1,200}\p{Greek}{3}",
    "ignoring case": "(?i)" + "ſKßΣ" * 200,
    "beyond Unicode": r"[\x{0}-\x{110000}]",
    "a huge bound": r"a{99999999999999999999}",
    "overlapping counters": r"(a{0,50}b{0,50}){0,50}(a|b){0,50}c",
    "nothing": "",
}
ENUM = words(10_000)
SCHEMAS = {
    "100,000 items": {"type": "array", "items": {"type": "string"}, "maxItems": 100_000},
    "at least 100,000 items": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000},
    "100^5 items": arrays_in_arrays(5, 100),
    "a large enum in eight places": {
        "$defs": {"c": {"enum": ENUM}},
        "type": "object",
        "properties": {f"c{i}": {"$ref": "#/$defs/c"} for i in range(8)},
        "required": ["c0", "c1"],
    },
    "depth 60": objects_in_objects(60),
    "depth 300": objects_in_objects(300),
    "only itself": {"$ref": "#"},
    "one another": ring(2),
    "a ring of 500": ring(500),
    "no end": {"$defs": {"n": one_property("n", {"$ref": "#/$defs/n"})}, "$ref": "#/$defs/n"},
    "itself everywhere": {
        "anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}],
        "allOf": [{"$ref": "#"}],
        "not": {"$ref": "#"},
    },
    "2^30 strings": doubling(30),
    "6^4 objects": any_of_any_of(4, 6),
    "400 that may be left out": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(400)},
        "additionalProperties": False,
    },
    "100,000 properties": {"properties": {f"p{i}": {} for i in range(100_000)}},
    "5,000 properties": {"properties": {f"p{i}": {} for i in range(5_000)}, "required": ["p4999"]},
    "a million characters": {"type": "string", "maxLength": 1_000_000},
    "exactly 100,000 characters": {"type": "string", "minLength": 100_000, "maxLength": 100_001},
    "10^18 characters": {"type": "string", "minLength": 10**18},
    "10^400 characters": {"type": "string", "minLength": 10**400},
    "huge integers": {"type": "integer", "minimum": -(10**30), "maximum": 10**40},
    "no such number": {"type": "number", "multipleOf": 1e-308, "maximum": 1e308},
    "multiples of a prime": {"type": "integer", "multipleOf": 2**61 - 1, "minimum": 1},
    "two multiples": {"allOf": [{"multipleOf": 999_983}, {"multipleOf": 999_979}]},
    "multiples of nothing": {"type": "number", "multipleOf": 0},
    "a bad type": {"properties": {"r": {"type": "stsring"}}},
    "a bad pattern": one_property("r", {"type": "string", "pattern": "[a-z"}),
    "a pattern that looks ahead": {"type": "string", "pattern": "^(?!foo)[a-z]+$"},
    "a catastrophic pattern": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "12 patterns at once": {
        "type": "string",
        "allOf": [{"pattern": f"^.*{c}.*$"} for c in "abcdefghijkl"],
    },
    "a pattern and lengths": {"type": "string", "pattern": "(ab?){50}", "minLength": 70},
    "no schema can be": False,
    "more than the most": {"type": "integer", "minimum": 5, "maximum": 3},
    "formats at once": {
        "allOf": [{"type": "string", "format": f} for f in ("date", "uuid", "uri", "email", "x")]
    },
    "dates everywhere": {
        "type": "array",
        "items": {"type": "string", "format": "date-time", "pattern": "^2.*9$"},
        "minItems": 500,
    },
    "a constant of 200 KiB": {"const": "é" * 100 * 1024},
    "keys by pattern, overlapping": {
        "patternProperties": {f"^{'.' * i}a.*": {"type": "integer"} for i in range(30)},
        "additionalProperties": False,
    },
    "keys that must match": {"propertyNames": {"pattern": "^(a|b)*a(a|b){15}$"}},
    "a dynamic reference": {"$dynamicAnchor": "n", "items": {"$dynamicRef": "#n"}},
    "a file": {"$ref": "file:///etc/passwd"},
    "a page": {"$ref": "http://localhost:1/schema.json"},
    "a reference through data": {"$ref": "#/properties/~0~1/%25", "properties": {"~/": {}}},
    "settings of the engine": {
        "type": "object",
        "x-guidance": {"lenient": True, "whitespace_pattern": ".*", "whitespace_flexible": True},
    },
    "a key of surrogates": {"properties": {"\ud83d": {"type": "string"}}, "required": ["\ud83d"]},
    "all 16 keywords at once": {
        "if": {"minItems": 3},
        "then": {"contains": {"const": 1}, "maxContains": 2},
        "else": {"uniqueItems": True},
        "dependentSchemas": {"a": {"required": ["b"]}},
        "unevaluatedProperties": False,
        "unevaluatedItems": {"not": {}},
    },
    "one of 500 alike": {"oneOf": [{"type": "string", "maxLength": i} for i in range(500)]},
    "all of 200 objects": {"allOf": [one_property(f"p{i}", {}, required=[]) for i in range(200)]},
}
JSON_TEXTS = {
    "no JSON": "{not json",
    "100,000 brackets": "[" * 100_000,
    "the same key 10,000 times": '{"properties":{' + ",".join(['"a":{}'] * 10_000) + "}}",
    "infinity": '{"minimum": 1e999, "maximum": -Infinity}',
    "an integer of 5,000 digits": '{"type": "integer", "minimum": 1' + "0" * 5000 + "}",
    "no number": '{"type": "number", "minimum": NaN}',
    "keys of other types": '{"properties": [1], "required": {"a": 1}, "enum": 3, "type": 7}',
    "a list": "[1, 2]",
    "nulls": '{"type": null, "properties": null, "items": null, "anyOf": null, "$ref": null}',
}
EBNF = {
    "left recursion": 'root ::= root "a" | "a"',
    "nothing but itself": "root ::= root",
    "each other": "root ::= a\na ::= b\nb ::= a",
    "30,000 brackets": "root ::= " + "(" * 30_000 + "a",
    "no such rule": "root ::= foo",
    "ambiguous without end": 'root ::= x "z"\nx ::= "" | x x | "y"',
    "no grammar": "hello (((",
    "5,000 rules": "root ::= r0\n" + "\n".join(f'r{i} ::= "a" r{i + 1}?' for i in range(5000)),
    "repeats of repeats": 'root ::= ((("a"{1,100}){1,100}){1,100}){1,100}',
    "a NUL": 'root ::= "\x00"',
}
LARK = {
    "a file": '%import common.WORD\n%import /etc/passwd\nstart: WORD "x"',
    "nothing but itself": "start: start",
    "ambiguous": 'start: start start | "a" |',
    "special tokens": 'start: <|im_end|> "a" <[2]>',
    "an inner schema": 'start: %json {"$ref": "#"}',
    "a terminal of itself": 'start: A\nA: A "a"',
    "no such option": '%llguidance {"no_forcing": true, "x": 1}\nstart: "a"',
    "a long way down": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1} |" for i in range(40)),
    "python": "start: {__import__('os').system('true')}",
}
CHOICES = {
    "none": [],
    "nothing": [""],
    "twice": ["a", "a"],
    "prefixes": ["a" * i for i in range(1, 1000)],
    "100,000": words(100_000, 4),
    "of other types": [1, None],
    "quotes and ends": ['"', "\\", "\n", "<|im_end|>", '" | /.*/'],
}


def all_of_them() -> dict[str, GrammarSpec]:
    """Name -> grammar. Schemas come strictly and leniently: they take different ways."""
    found = {f"regex: {name}": GrammarSpec("regex", text) for name, text in REGEXES.items()}
    texts = {name: json.dumps(schema) for name, schema in SCHEMAS.items()} | JSON_TEXTS
    for name, text in texts.items():
        found[f"schema: {name}"] = GrammarSpec("json_schema", text)
        found[f"lenient: {name}"] = GrammarSpec("json_schema", text, strict=False)
    found |= {f"ebnf: {name}": GrammarSpec("ebnf", text) for name, text in EBNF.items()}
    found |= {f"lark: {name}": GrammarSpec("lark", text) for name, text in LARK.items()}
    lists = {name: GrammarSpec("choice", json.dumps(list_)) for name, list_ in CHOICES.items()}
    return found | {f"choice: {name}": spec for name, spec in lists.items()}
