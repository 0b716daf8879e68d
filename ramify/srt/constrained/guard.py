"""What one mask of a running request may cost."""

import time

from ramify.srt.constrained.base import GrammarError, Matcher, Row

MASK_S = 0.02  # a step of the model: all requests of the batch wait for the slowest mask


def fill_within(matcher: Matcher, row: Row, limit_s: float = MASK_S) -> bool:
    """`matcher.fill(row)`, or GrammarError grammar_timeout when it used more than `limit_s`.

    Counts this thread's own processor time: an innocent request does not pay for a busy machine.
    """
    began = time.thread_time()
    filled = matcher.fill(row)
    if time.thread_time() - began > limit_s:
        raise GrammarError("grammar_timeout", "the grammar needs too much work for one token")
    return filled
