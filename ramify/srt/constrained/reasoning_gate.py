"""A grammar that starts where a model's thinking ends.

    t0 t1 t2 ... E0 E1 | g0 g1 g2 ...
    ---- free -------->|---- inner matcher ---->      E0 E1: the end of thinking, one token or more

While it is free any text may come, and the tokens of E; no end token, or there would be no answer.
"""

from collections.abc import Sequence

import numpy as np

from ramify.srt.constrained.base import Matcher, Row
from ramify.srt.constrained.vocabulary import Vocabulary


class ReasoningGate:
    """A Matcher around another, which it leaves alone until thinking has ended."""

    def __init__(self, inner: Matcher, end: Sequence[int], vocabulary: Vocabulary) -> None:
        """`end` are the tokens that end thinking. Raises ValueError if there are none."""
        if not end:
            raise ValueError("thinking ends with at least one token")
        self._inner = inner
        self._end = list(end)
        self._vocabulary = vocabulary
        self._free: list[int] = []  # accepted up to the end of thinking, which is among them
        self._inside = 0  # accepted by the inner matcher

    @property
    def thinking(self) -> bool:
        """Whether the end of thinking is still to come."""
        return self._free[-len(self._end) :] != self._end

    def fill(self, row: Row) -> bool:
        if not self.thinking:
            return self._inner.fill(row)
        np.bitwise_or(self._vocabulary.text_row, self._vocabulary.row_of(self._end), out=row)
        return True

    def accept(self, token: int) -> bool:
        if not self.thinking:
            taken = self._inner.accept(token)
            self._inside += taken
            return taken
        taken = token in self._end or self._vocabulary.is_text(token)
        if taken:
            self._free.append(token)
        return taken

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
        other = ReasoningGate(self._inner.fork(), self._end, self._vocabulary)
        other._free = self._free.copy()
        other._inside = self._inside
        return other
