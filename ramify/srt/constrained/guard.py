"""Two checks around an engine: a new grammar allows something, and a mask costs little."""

import time

from ramify.srt.constrained.base import (
    CompiledGrammar,
    GrammarBackend,
    GrammarError,
    Matcher,
    Row,
)
from ramify.srt.grammar import GrammarSpec

MASK_S = 0.05  # several steps of the model: all requests of the batch wait for the slowest mask


def compile_checked(backend: GrammarBackend, spec: GrammarSpec, row: Row) -> CompiledGrammar:
    """The grammar, its first mask made: what engines leave to the first use is done or refused.

    `row` is scratch space. Raises GrammarError.
    """
    grammar = backend.compile(spec)
    if not grammar.new_matcher().fill(row):
        raise GrammarError("invalid_grammar", "no output at all satisfies the grammar")
    return grammar


def fill_within(matcher: Matcher, row: Row, limit_s: float = MASK_S) -> bool:
    """`matcher.fill(row)`, or GrammarError grammar_timeout when it used more than `limit_s`.

    Counts this thread's own processor time: an innocent request does not pay for a busy machine.
    """
    began = time.thread_time()
    filled = matcher.fill(row)
    if time.thread_time() - began > limit_s:
        raise GrammarError("grammar_timeout", "the grammar needs too much work for one token")
    return filled
