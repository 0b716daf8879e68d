"""llguidance: regexes, schemas, grammars and choices, compiled in milliseconds under hard limits.

What it does otherwise than the contract, and this adapter hides:

    it never raises: a bad grammar, and a spent limit, turn up as an error state that never leaves
    an end token on a stopped matcher is no step, elsewhere it is    -> it never sees end tokens
    a wrong `consume_token` ends the matcher                         -> `try_consume_tokens`
    a token past its vocabulary does too                             -> it is never asked for one
    a schema's "x-guidance" sets options                             -> every one is overridden
"""

import json
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import llguidance
from llguidance import LLMatcher

from ramify.srt.constrained import ebnf, limits, llguidance_errors
from ramify.srt.constrained.base import GrammarError, Row
from ramify.srt.constrained.steps import StepsGrammar
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=100_000,
    max_grammar_size=200_000,
    verbose_errors=False,  # the text would carry the parser's state
)
# One way to write white space: nothing to loop in, and most of a document's syntax is forced.
JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
LENIENT_OPTIONS: dict[str, Any] = JSON_OPTIONS | {"lenient": True, "coerce_one_of": True}
BYTES_PER_CHARACTER = 64  # of a compiled grammar; the engine does not say, its caches grow with use
BYTES_AT_LEAST = 64 * 1024


class _Tokens:
    """A vocabulary in the shape that llguidance asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.end_ids[0]
        self.tokens = [piece or b"<%d>" % i for i, piece in enumerate(vocabulary.pieces)]
        self.special_token_ids = [i for i, piece in enumerate(vocabulary.pieces) if not piece]

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.write(text)


@dataclass(frozen=True)
class LLGuidanceSteps:
    """One matcher of the engine."""

    engine: LLMatcher
    vocabulary: Vocabulary

    def mask(self, row: Row) -> None:
        self.engine.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self.engine.is_error():
            raise llguidance_errors.error(self.engine.get_error(), "grammar")

    def step(self, token: int) -> bool:
        return self.engine.try_consume_tokens([token]) == 1

    def back(self, n: int) -> None:
        self.engine.rollback(n)

    def forced(self) -> list[int]:
        """Nothing where the engine does not know how the model would write a text."""
        if self.vocabulary.encode is None:
            return []
        tokens = self.engine.compute_ff_tokens()
        return list(takewhile(self.vocabulary.is_text, tokens))

    def may_end(self) -> bool:
        return self.engine.is_accepting()

    def must_end(self) -> bool:
        return self.engine.is_stopped()

    def copy(self) -> "LLGuidanceSteps":
        return LLGuidanceSteps(self.engine.deep_copy(), self.vocabulary)


class LLGuidanceBackend:
    """llguidance for one vocabulary. Threads may compile at once; it lets go of the GIL."""

    name = "llguidance"
    version = llguidance.__version__

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.end_ids)
        )

    def compile(self, spec: GrammarSpec) -> StepsGrammar:
        """Compiles, and computes the first mask, which is where an empty language shows."""
        limits.check(spec)
        source = _source(spec)
        engine = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if not engine.is_error():
            engine.compute_bitmask()
        if engine.is_error():
            raise llguidance_errors.error(engine.get_error(), spec.kind)
        return StepsGrammar(
            LLGuidanceSteps(engine, self.vocabulary),
            self.vocabulary,
            BYTES_AT_LEAST + BYTES_PER_CHARACTER * len(source),
            llguidance_errors.unenforced(engine.get_grammar_warnings()),
        ).checked()


def _source(spec: GrammarSpec) -> str:
    """The grammar as llguidance takes it. Raises GrammarError."""
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "json_schema":
        options = JSON_OPTIONS if spec.strict else LENIENT_OPTIONS
        value = limits.schema(spec.text)
        return LLMatcher.grammar_from_json_schema(value, overrides=cast(Any, options))
    if spec.kind == "choice":
        literals = (json.dumps(choice, ensure_ascii=False) for choice in limits.choices(spec.text))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(literals))
    if spec.kind == "ebnf":
        return LLMatcher.grammar_from_lark(ebnf.to_lark(spec.text))
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(spec.text)
    raise GrammarError("invalid_grammar", f"llguidance has no {spec.kind}; xgrammar has")
