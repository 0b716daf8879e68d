"""xgrammar: structural tags, and a part of the rest with fast masks and slow compiles.

What it does otherwise than the contract, and this adapter hides or refuses:

    takes special tokens for the text of their names     -> they are blank in its vocabulary
    ignores what it cannot keep                          -> unkept.py names and refuses it
    compiles grammars that nothing satisfies             -> the first mask is looked at
    a dot matches a newline                              -> it is rewritten
    raises RuntimeError with places in its source        -> only what follows the place is told
"""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

import xgrammar

from ramify.srt.constrained import ebnf, limits, unkept
from ramify.srt.constrained.base import GrammarError, Prepared, Row
from ramify.srt.constrained.idle import without_idle
from ramify.srt.constrained.limits import invalid
from ramify.srt.constrained.steps import StepsGrammar, only_ways
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec

SEPARATORS = (", ", ": ")
_PLACE = re.compile(r"^\s*\[[^\]]*\]\s*\S+?:\d+:\s*")
MAX_WHITE_SPACE = 1  # between the parts of JSON in a structural tag


@dataclass(frozen=True)
class XGrammarSteps:
    """One matcher of the engine, unlimited rollback included."""

    engine: xgrammar.GrammarMatcher
    vocabulary: Vocabulary

    def mask(self, row: Row) -> None:
        self.engine.fill_next_token_bitmask(row.reshape(1, -1))

    def step(self, token: int) -> bool:
        return bool(self.engine.accept_token(token))

    def back(self, n: int) -> None:
        self.engine.rollback(n)

    def forced(self) -> list[int]:
        """Only tokens without an alternative: where several ways to write a forced text are
        allowed, writing it in one would change the distribution."""
        return only_ways(self, self.vocabulary)

    def may_end(self) -> bool:
        return bool(self.engine.is_completed())

    def must_end(self) -> bool:
        row = self.vocabulary.new_row()
        self.mask(row)
        return not (row & self.vocabulary.text_row).any()

    def copy(self) -> "XGrammarSteps":
        return XGrammarSteps(self.engine.fork(), self.vocabulary)


class XGrammarBackend:
    """xgrammar for one vocabulary. Compiles let go of the interpreter's lock."""

    name = "xgrammar"
    version = importlib.metadata.version("xgrammar")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        tokens = xgrammar.TokenizerInfo(
            list(vocabulary.pieces),
            xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.end_ids),
            add_prefix_space=False,
        )
        self._compiler = xgrammar.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)

    def prepare(self, spec: GrammarSpec) -> Prepared:
        value = limits.check(spec)
        if spec.kind == "regex":
            return Prepared(spec.kind, _regex(value))
        if spec.kind == "choice":
            return Prepared(spec.kind, _choice(value))
        if spec.kind == "ebnf":
            return Prepared(spec.kind, ebnf.without_dots(value))
        if spec.kind == "json_schema":
            schema = without_idle(value)
            let_go = unkept.unenforced(schema, spec.strict, self.name)
            return Prepared(spec.kind, json.dumps(schema), unenforced=let_go)
        if spec.kind == "structural_tag":
            tag = _tag(value)
            schemas = _prepare(tag)
            names = [unkept.unenforced(schema, spec.strict, self.name) for schema in schemas]
            return Prepared(spec.kind, json.dumps(tag), unenforced=tuple(chain(*names)))
        raise invalid(f"xgrammar has no {spec.kind}; llguidance has")

    def build(self, prepared: Prepared) -> StepsGrammar:
        try:
            compiled = self._compile(prepared)
        except RuntimeError as error:
            raise _error(error, prepared.kind) from error
        start = XGrammarSteps(xgrammar.GrammarMatcher(compiled), self.vocabulary)
        size = int(compiled.memory_size_bytes)
        return StepsGrammar(start, self.vocabulary, size, prepared.unenforced).checked()

    def _compile(self, prepared: Prepared) -> xgrammar.CompiledGrammar:
        if prepared.kind == "regex":
            return self._compiler.compile_regex(prepared.text)
        if prepared.kind == "json_schema":
            return self._compiler.compile_json_schema(
                prepared.text, any_whitespace=False, separators=SEPARATORS, strict_mode=False
            )
        if prepared.kind == "structural_tag":
            return self._compiler.compile_structural_tag(prepared.text)
        return self._compiler.compile_grammar(prepared.text)


def _choice(choices: list[str]) -> str:
    """An EBNF with every character as a code: no quoting to get wrong."""
    literals = ("".join(f"\\U{ord(character):08x}" for character in c) for c in choices)
    return "root ::= " + " | ".join(f'"{literal}"' for literal in literals)


def _tag(found: dict[str, Any]) -> dict[str, Any]:
    """A structural tag in the engine's form; the older form has structures and triggers."""
    if "structures" not in found:
        return found
    items, triggers = found["structures"], found.get("triggers")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise invalid("structures must be a list of objects with begin, schema and end")
    tags = [
        {
            "begin": item.get("begin"),
            "content": {"type": "json_schema", "json_schema": item.get("schema", True)},
            "end": item.get("end"),
        }
        for item in items
    ]
    return {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags},
    }


def _prepare(tag: Any) -> list[dict[str, Any]]:
    """The schemas in a structural tag, whose own parts are checked and bounded in place.

    Raises GrammarError for what is over the limits, and for formats that name special tokens.
    """
    found = []
    todo = [tag]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            kind = str(node.get("type", ""))
            if "token" in kind:
                raise invalid(f"structural tags of type {kind[:40]} are not allowed")
            if kind == "regex":
                limits.check_regex(str(node.get("pattern", "")))
                node["pattern"] = _regex(str(node.get("pattern", "")))
            elif kind == "grammar":
                node["grammar"] = ebnf.without_dots(str(node.get("grammar", "")))
            elif "json_schema" in node:
                node["max_whitespace_cnt"] = MAX_WHITE_SPACE
                found.append(limits.schema(json.dumps(node["json_schema"])))
            todo += [value for key, value in node.items() if key != "json_schema"]
    return found


def _regex(text: str) -> str:
    return unkept.dots_on_one_line(unkept.without_anchors(text))


def _error(error: RuntimeError, kind: str) -> GrammarError:
    """The engine's words without the places in its source."""
    text = _PLACE.sub("", str(error)).split("\n")[0]
    text = text.rpartition("is false: ")[2].strip()
    code = "invalid_grammar"
    if kind == "json_schema" and re.search(r"Look(ahead|behind)", text):
        code = "unsupported_schema"
    return GrammarError(code, text[:200] or f"the {kind} cannot be used")
