"""What a grammar may cost while it is followed: all requests of a batch wait for the slowest.

    rehearsal   the first tokens of any output, where the grammar is compiled
    allowance   |======spent======|---left---|   of a running request; each token earns some again

Counts a thread's own processor time: an innocent request does not pay for a busy machine. One that
holds up a step once, because the interpreter happens to collect its garbage then, has enough left.
"""

import time

import numpy as np

from ramify.srt.constrained.base import CompiledGrammar, GrammarError, Matcher, Row

REHEARSED = 8  # tokens
REHEARSAL_S = 0.1
ALLOWANCE_S = 0.15
EARNED_S = 0.002  # a token's share: an eighth of a step of the smallest model


class Guarded:
    """A matcher with an allowance: `fill` raises GrammarError grammar_timeout once it is spent."""

    def __init__(
        self, matcher: Matcher, most_s: float = ALLOWANCE_S, earned_s: float = EARNED_S
    ) -> None:
        self._matcher = matcher
        self._most_s = most_s
        self._earned_s = earned_s
        self._left_s = most_s

    def fill(self, row: Row) -> bool:
        self._left_s = min(self._left_s + self._earned_s, self._most_s)
        began = time.thread_time()
        filled = self._matcher.fill(row)
        self._left_s -= time.thread_time() - began
        if self._left_s < 0:
            raise GrammarError("grammar_timeout", "the grammar needs too much work for one token")
        return filled

    def accept(self, token: int) -> bool:
        began = time.thread_time()
        taken = self._matcher.accept(token)
        self._left_s -= time.thread_time() - began
        return taken

    def rollback(self, n: int) -> None:
        self._matcher.rollback(n)

    def forced(self) -> list[int]:
        began = time.thread_time()
        forced = self._matcher.forced()
        self._left_s -= time.thread_time() - began
        return forced

    def is_accepting(self) -> bool:
        return self._matcher.is_accepting()

    def is_finished(self) -> bool:
        return self._matcher.is_finished()

    def fork(self) -> "Guarded":
        other = Guarded(self._matcher.fork(), self._most_s, self._earned_s)
        other._left_s = self._left_s
        return other


def rehearse(grammar: CompiledGrammar, limit_s: float = REHEARSAL_S) -> None:
    """Follow some output for a few tokens. Raises GrammarError grammar_timeout when that is slow.

    The tokens are spread over what is allowed, so that the way leads into the grammar's parts.
    """
    matcher = Guarded(grammar.new_matcher(), limit_s, 0.0)
    row = grammar.vocabulary.new_row()
    for n in range(REHEARSED):
        if matcher.is_finished() or not matcher.fill(row):
            return
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        matcher.accept(int(allowed[len(allowed) * (n + 1) // (REHEARSED + 1)]))
        matcher.forced()
