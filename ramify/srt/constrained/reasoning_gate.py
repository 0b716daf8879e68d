"""A grammar that starts where a model's thinking ends.

    t0 t1 t2 ... </ think > | g0 g1 g2 ...
    ---- free ------------->|---- inner matcher ---->      </think>: the marker, in any tokens

While it is free any text may come but no end token, or there would be no answer. The marker is
found in the text, as who splits the answer finds it, and not in tokens: a model may write it in
several ways. A token that holds the end of the marker and more is not allowed: what is behind the
marker would be the grammar's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramify.srt.constrained.base import CompiledGrammar, Matcher, Row
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.reasoning import begun_at_end


class EndMarker:
    """The text that ends thinking, over one vocabulary; all requests share it.

    `begun` is how many bytes of the marker stand at the end of a text. A special token that is
    spelled as the marker is the marker too.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        """Raises ValueError for an empty text."""
        if not text:
            raise ValueError("thinking ends with a text that is not empty")
        self._marker = text.encode()
        self._vocabulary = vocabulary
        self._special = vocabulary.specials.get(self._marker)
        # The only tokens that may hold more than the end of the marker: looked for once.
        last = self._marker[-1:]
        self._suspects = [i for i, piece in enumerate(vocabulary.pieces) if last in piece[:-1]]
        self._rows: dict[int, Row] = {}

    def __len__(self) -> int:
        """Bytes of the marker."""
        return len(self._marker)

    def after(self, begun: int, token: int) -> int | None:
        """`begun` behind one more token, None if it may not come."""
        if token == self._special:
            return len(self)
        if not self._vocabulary.is_text(token):
            return None
        text = self._marker[:begun] + self._vocabulary.pieces[token]
        at = text.find(self._marker)
        if at >= 0:
            return len(self) if at + len(self) == len(text) else None
        return begun_at_end(text, self._marker)

    def row(self, begun: int) -> Row:
        """Which tokens may come; read-only."""
        if begun not in self._rows:
            row = self._vocabulary.text_row & ~self._vocabulary.row_of(
                token for token in self._suspects if self.after(begun, token) is None
            )
            if self._special is not None:
                row |= self._vocabulary.row_of([self._special])
            row.flags.writeable = False
            self._rows[begun] = row
        return self._rows[begun]


class ReasoningGate:
    """A Matcher around another, which it leaves alone until thinking has ended."""

    def __init__(self, inner: Matcher, end: EndMarker, free: Sequence[int] = ()) -> None:
        self._inner = inner
        self._end = end
        self._free = list(free)  # `begun` behind each token accepted up to the end of thinking
        self._inside = 0  # accepted by the inner matcher

    @property
    def _begun(self) -> int:
        return self._free[-1] if self._free else 0

    @property
    def thinking(self) -> bool:
        """Whether the end of thinking is still to come."""
        return self._begun < len(self._end)

    def fill(self, row: Row) -> bool:
        if not self.thinking:
            return self._inner.fill(row)
        np.copyto(row, self._end.row(self._begun))
        return True

    def accept(self, token: int) -> bool:
        if not self.thinking:
            taken = self._inner.accept(token)
            self._inside += taken
            return taken
        begun = self._end.after(self._begun, token)
        if begun is not None:
            self._free.append(begun)
        return begun is not None

    def rollback(self, n: int) -> None:
        if not 0 <= n <= self._inside + len(self._free):
            raise ValueError(f"{n} tokens cannot be taken back: fewer were accepted")
        inside = min(n, self._inside)
        self._inner.rollback(inside)
        self._inside -= inside
        del self._free[len(self._free) - (n - inside) :]

    def forced(self) -> list[int]:
        return [] if self.thinking else self._inner.forced()

    def is_accepting(self) -> bool:
        return not self.thinking and self._inner.is_accepting()

    def is_finished(self) -> bool:
        return not self.thinking and self._inner.is_finished()

    def fork(self) -> "ReasoningGate":
        other = ReasoningGate(self._inner.fork(), self._end, self._free)
        other._inside = self._inside
        return other


@dataclass(frozen=True)
class GatedGrammar:
    """A compiled grammar whose matchers start where thinking ends."""

    inner: CompiledGrammar
    end: EndMarker

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    @property
    def unenforced(self) -> tuple[str, ...]:
        return self.inner.unenforced

    @property
    def vocabulary(self) -> Vocabulary:
        return self.inner.vocabulary

    def new_matcher(self) -> ReasoningGate:
        return ReasoningGate(self.inner.new_matcher(), self.end)


class Gates:
    """Puts the gate of one model's end marker in front of grammars."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends: dict[Vocabulary, EndMarker] = {}  # each engine has a vocabulary of its own

    def before(self, grammar: CompiledGrammar) -> GatedGrammar:
        """The same grammar for an output that begins with thinking."""
        vocabulary = grammar.vocabulary
        if vocabulary not in self._ends:
            self._ends[vocabulary] = EndMarker(self._text, vocabulary)
        return GatedGrammar(grammar, self._ends[vocabulary])
