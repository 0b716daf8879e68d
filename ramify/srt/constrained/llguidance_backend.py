"""llguidance: regexes, schemas, grammars and choices, compiled in milliseconds under hard limits.

What it does otherwise than the contract, and this adapter hides:

    it never raises: a bad grammar, and a spent limit, turn up as an error state that never leaves
    an end token on a stopped matcher is no step, elsewhere it is    -> it never sees end tokens
    a wrong `consume_token` ends the matcher                         -> `try_consume_tokens`
    a token past its vocabulary does too                             -> it is never asked for one
    copies share a lexer, and one can spend it for all               -> `Master`
    a schema's "x-guidance" sets options                             -> every one is overridden
"""

import json
from functools import lru_cache
from itertools import takewhile
from typing import Any, cast

import llguidance
from llguidance import LLMatcher

from ramify.srt.constrained import ebnf, limits, llguidance_errors
from ramify.srt.constrained.base import GrammarError, Prepared, Row
from ramify.srt.constrained.idle import without_idle
from ramify.srt.constrained.steps import StepsGrammar
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=200_000,  # with half of it, 1 of 300 real schemas fails within an instance
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
WRITTEN, SHORT = 4096, 64  # forced texts whose tokens are remembered; characters of the longest


class _Tokens:
    """A vocabulary in the shape that llguidance asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.end_ids[0]
        self.tokens = [piece or b"<%d>" % i for i, piece in enumerate(vocabulary.pieces)]
        self.special_token_ids = [i for i, piece in enumerate(vocabulary.pieces) if not piece]
        self._write = lru_cache(WRITTEN)(vocabulary.write)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a forced text, asked for in masks: the same few again and again."""
        return self._write(text) if len(text) <= SHORT else self._vocabulary.write(text)


class Master:
    """A compiled grammar whose matchers are copies of one, which share what its lexer has learnt.

    They share its limits too: when one output is more than the lexer can take, every copy fails
    from then on. So a copy that fails goes its way again in a lexer that is not known to be spent.
    What fails by itself fails a second time.

        lexer 1   a, b, c     b spends it, and the next one
        lexer 2   b           a fails in lexer 1, and finds lexer 2 spent as well
        lexer 3   a           and so do c, when it fails, and whoever comes new
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._spent = 0  # the last lexer that is known to be
        self._lexer = 1
        self._compile()

    def _compile(self) -> None:
        self.engine = LLMatcher(self._tokenizer, self._source, log_level=0, limits=LIMITS)
        if not self.engine.is_error():
            self.engine.compute_bitmask()

    def copy(self) -> tuple[LLMatcher, int]:
        """A matcher at the start, and the number of its lexer."""
        if self._spent == self._lexer:
            self._lexer += 1
            self._compile()
        return self.engine.deep_copy(), self._lexer

    def spend(self, lexer: int) -> None:
        """A copy has failed in this lexer."""
        self._spent = max(self._spent, lexer)


class LLGuidanceSteps:
    """One matcher of the engine, and the tokens that it was given."""

    def __init__(self, master: Master, vocabulary: Vocabulary) -> None:
        self._master = master
        self._engine, self._lexer = master.copy()
        self._vocabulary = vocabulary
        self._way: list[int] = []

    def mask(self, row: Row) -> None:
        self._engine.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._engine.is_error():
            self._again()
            self._engine.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._engine.is_error():
            self._master.spend(self._lexer)
            raise llguidance_errors.error(self._engine.get_error(), "grammar")

    def step(self, token: int) -> bool:
        taken = self._engine.try_consume_tokens([token]) == 1
        if not taken and self._should_take(token):
            self._again()
            taken = self._engine.try_consume_tokens([token]) == 1
        if taken:
            self._way.append(token)
        return taken

    def _should_take(self, token: int) -> bool:
        """Whether a token was refused for want of a lexer: a mask may still allow it."""
        if self._engine.is_error():
            return True
        engine = self._engine.deep_copy()
        row = self._vocabulary.new_row()
        engine.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        return engine.is_error() or bool(int(row[token // 32]) >> (token % 32) & 1)

    def _again(self) -> None:
        """Go the same way in a lexer that is not known to be spent."""
        self._master.spend(self._lexer)
        self._engine, self._lexer = self._master.copy()
        self._engine.try_consume_tokens(self._way)

    def back(self, n: int) -> None:
        self._engine.rollback(n)
        del self._way[-n:]

    def forced(self) -> list[int]:
        """Nothing where the engine does not know how the model would write a text."""
        if self._vocabulary.encode is None:
            return []
        return list(takewhile(self._vocabulary.is_text, self._engine.compute_ff_tokens()))

    def may_end(self) -> bool:
        return self._engine.is_accepting()

    def must_end(self) -> bool:
        return self._engine.is_stopped()

    def copy(self) -> "LLGuidanceSteps":
        other = LLGuidanceSteps(self._master, self._vocabulary)
        if self._way:
            other._engine, other._lexer = self._engine.deep_copy(), self._lexer
            other._way = self._way.copy()
        return other


class LLGuidanceBackend:
    """llguidance for one vocabulary. Threads may compile at once; it lets go of the GIL."""

    name = "llguidance"
    version = llguidance.__version__

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.end_ids)
        )

    def prepare(self, spec: GrammarSpec) -> Prepared:
        return Prepared(spec.kind, _source(spec, limits.check(spec)))

    def build(self, prepared: Prepared) -> StepsGrammar:
        """Compiles, and computes the first mask, which is where an empty language shows."""
        master = Master(self._tokenizer, prepared.text)
        if master.engine.is_error():
            raise llguidance_errors.error(master.engine.get_error(), prepared.kind)
        return StepsGrammar(
            LLGuidanceSteps(master, self.vocabulary),
            self.vocabulary,
            BYTES_AT_LEAST + BYTES_PER_CHARACTER * len(prepared.text),
            llguidance_errors.unenforced(master.engine.get_grammar_warnings()),
        ).checked()


def _source(spec: GrammarSpec, value: Any) -> str:
    """The grammar as llguidance takes it; `value` is what its text holds. Raises GrammarError."""
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "json_schema":
        options = JSON_OPTIONS if spec.strict else LENIENT_OPTIONS
        try:
            schema = without_idle(value)
            return LLMatcher.grammar_from_json_schema(schema, overrides=cast(Any, options))
        except ValueError as error:
            raise limits.too_large("the schema holds a number that is too large") from error
    if spec.kind == "choice":
        literals = (json.dumps(choice, ensure_ascii=False) for choice in value)
        return LLMatcher.grammar_from_lark("start: " + " | ".join(literals))
    if spec.kind == "ebnf":
        return LLMatcher.grammar_from_lark(ebnf.to_lark(spec.text))
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(spec.text)
    raise GrammarError("invalid_grammar", f"llguidance has no {spec.kind}; xgrammar has")
