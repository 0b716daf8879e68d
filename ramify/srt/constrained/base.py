"""What every grammar engine is to the runtime: three protocols and one error.

    GrammarBackend.prepare(spec) -> Prepared               in a process that may be killed
    GrammarBackend.build(prepared) -> CompiledGrammar      once per grammar, off the loop
    CompiledGrammar.new_matcher() -> Matcher               once per request, cheap
    per token:  fill(row) -> sample -> accept(token) -> forced() -> accept each of them -> ...

A bitmask row is `words(vocab_size)` int32: bit i % 32 of word i // 32 says whether token i may
come. Words and bits past the tokenizer's vocabulary are 0: what the head has more is never allowed.
"""

from typing import Protocol

import msgspec

from ramify.srt.constrained.vocabulary import Row as Row
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.constrained.vocabulary import words as words
from ramify.srt.grammar import GrammarError as GrammarError
from ramify.srt.grammar import GrammarSpec, Kind


class Matcher(Protocol):
    """Follows one output. Cheap to make; not thread-safe."""

    def fill(self, row: Row) -> bool:
        """Write which tokens may come next. False if none may: then the output cannot go on.

        The end tokens are among them exactly where the output may end. Raises GrammarError when
        the engine's limits are exceeded.
        """
        ...

    def accept(self, token: int) -> bool:
        """Go on with a token. False, and nothing changed, if it may not come."""
        ...

    def rollback(self, n: int) -> None:
        """Take the last n accepted tokens back."""
        ...

    def forced(self) -> list[int]:
        """The tokens that must come next, whatever is sampled; not accepted yet. Never an end
        token. Each is the only one that `fill` allows at its place, so adding them does not change
        the distribution of outputs. `accept` may take another way to write the same text there."""
        ...

    def is_accepting(self) -> bool:
        """Whether the output may end here."""
        ...

    def is_finished(self) -> bool:
        """Whether nothing but the end may come: it was accepted, or is the only way on."""
        ...

    def fork(self) -> "Matcher":
        """An independent matcher at the same place."""
        ...


class CompiledGrammar(Protocol):
    """A grammar for one vocabulary. `unenforced` names what a lenient compile let go."""

    @property
    def nbytes(self) -> int: ...

    @property
    def unenforced(self) -> tuple[str, ...]: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def new_matcher(self) -> Matcher: ...


class Prepared(msgspec.Struct, frozen=True):
    """A grammar that was checked, as its engine takes it: plain data, for any process to build.

    `text` is in the engine's own language, `data` what it made of the grammar, if it can be handed
    over. `unenforced` names what was let go.
    """

    kind: Kind
    text: str = ""
    data: bytes = b""
    unenforced: tuple[str, ...] = ()


class GrammarBackend(Protocol):
    """An engine, bound to one vocabulary."""

    name: str

    def prepare(self, spec: GrammarSpec) -> Prepared:
        """Check a grammar and put it into the engine's words: all that is done in Python, which
        would hold the interpreter's lock. Raises GrammarError."""
        ...

    def build(self, prepared: Prepared) -> CompiledGrammar:
        """The grammar, its first mask made: what an engine leaves to the first use is done or
        refused by then. Raises GrammarError, for a grammar that no output satisfies too."""
        ...


def compile_grammar(backend: GrammarBackend, spec: GrammarSpec) -> CompiledGrammar:
    """Both at once, for a process of its own. Raises GrammarError."""
    return backend.build(backend.prepare(spec))
