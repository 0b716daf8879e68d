"""One matcher for all engines: an engine follows text, this follows the output that it is part of.

accepted   t0 t1 t2 ... END          the engine's own state is behind the last text token;
           |- engine -|              an end token is one flag here, so no engine's way of
                                     treating end tokens shows
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ramify.srt.constrained.base import GrammarError, Row
from ramify.srt.constrained.vocabulary import Vocabulary

EMPTY = "no output satisfies it"
MAX_RUN = 256  # tokens that are forced at once


class Steps(Protocol):
    """An engine's state behind some text tokens. It is never asked about any other token."""

    def mask(self, row: Row) -> None:
        """Write which text tokens may come. Bits of other tokens do not matter."""
        ...

    def step(self, token: int) -> bool:
        """Go on with a text token. False, and nothing changed, if it may not come."""
        ...

    def back(self, n: int) -> None:
        """Take n steps back: at most as many as were made."""
        ...

    def forced(self) -> list[int]:
        """The text tokens that must come next, each the only one in its mask."""
        ...

    def may_end(self) -> bool: ...

    def must_end(self) -> bool:
        """Whether no text token may come, where the output may end."""
        ...

    def copy(self) -> "Steps": ...


class StepsMatcher:
    """A Matcher over an engine's steps."""

    def __init__(self, steps: Steps, vocabulary: Vocabulary, made: int = 0) -> None:
        self._steps = steps
        self._vocabulary = vocabulary
        self._made = made  # steps behind us
        self._ended = False

    def fill(self, row: Row) -> bool:
        if self._ended:
            row[:] = 0
            return False
        self._steps.mask(row)
        np.bitwise_and(row, self._vocabulary.text_row, out=row)
        if self._steps.may_end():
            np.bitwise_or(row, self._vocabulary.end_row, out=row)
        return bool(row.any())

    def accept(self, token: int) -> bool:
        if self._ended:
            return False
        if token in self._vocabulary.end_ids:
            self._ended = self._steps.may_end()
            return self._ended
        taken = self._vocabulary.is_text(token) and self._steps.step(token)
        self._made += taken
        return taken

    def rollback(self, n: int) -> None:
        if not 0 <= n <= self._made + self._ended:
            raise ValueError(f"{n} tokens cannot be taken back: fewer were accepted")
        steps = n - self._ended if n else 0
        self._ended = self._ended and n == 0
        if steps:
            self._steps.back(steps)
            self._made -= steps

    def forced(self) -> list[int]:
        return [] if self._ended else self._steps.forced()

    def is_accepting(self) -> bool:
        return self._ended or self._steps.may_end()

    def is_finished(self) -> bool:
        return self._ended or (self._steps.may_end() and self._steps.must_end())

    def fork(self) -> "StepsMatcher":
        other = StepsMatcher(self._steps.copy(), self._vocabulary, self._made)
        other._ended = self._ended
        return other


@dataclass(frozen=True)
class StepsGrammar:
    """A compiled grammar: the steps at its start, copied for each matcher."""

    start: Steps
    vocabulary: Vocabulary
    nbytes: int
    unenforced: tuple[str, ...] = ()

    def new_matcher(self) -> StepsMatcher:
        return StepsMatcher(self.start.copy(), self.vocabulary)

    def checked(self) -> "StepsGrammar":
        """Itself. Raises GrammarError when the first mask is empty: a sampler would have nothing
        to draw from, and no engine finds this out when it compiles."""
        if not self.new_matcher().fill(self.vocabulary.new_row()):
            raise GrammarError("invalid_grammar", EMPTY)
        return self


def only_token(row: Row) -> int | None:
    """The token of a row that allows just one."""
    filled = np.flatnonzero(row)
    if len(filled) != 1:
        return None
    word = int(row[filled[0]]) & 0xFFFFFFFF
    return None if word & (word - 1) else 32 * int(filled[0]) + word.bit_length() - 1


def only_ways(steps: Steps, vocabulary: Vocabulary) -> list[int]:
    """The run of tokens where each mask allows one text token and no end: forced for certain."""
    steps, row = steps.copy(), vocabulary.new_row()
    run: list[int] = []
    while not steps.may_end():
        steps.mask(row)
        np.bitwise_and(row, vocabulary.text_row, out=row)
        token = only_token(row)
        if token is None or len(run) == MAX_RUN:
            break
        run.append(token)
        steps.step(token)
    return run
