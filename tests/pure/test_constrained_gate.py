"""The reasoning gate over a matcher that only counts: what it lets through, and when."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ramify.srt.constrained.base import words
from ramify.srt.constrained.reasoning_gate import ReasoningGate
from ramify.srt.constrained.vocabulary import Vocabulary

A, B, C, END, THINK = 0, 1, 2, 3, 4
VOCABULARY = Vocabulary((b"a", b"b", b"c", b"", b""), (END,))


class OnlyA:
    """Accepts A, any number of times; may end after each."""

    def __init__(self, seen=0):
        self.seen = seen

    def fill(self, row):
        row[:] = 1 << A
        return True

    def accept(self, token):
        self.seen += token == A
        return token == A

    def rollback(self, n):
        assert n <= self.seen
        self.seen -= n

    def forced(self):
        return [A]

    def is_accepting(self):
        return self.seen > 0

    def is_finished(self):
        return self.seen == 3

    def fork(self):
        return OnlyA(self.seen)


def gate(end):
    return ReasoningGate(OnlyA(), end, VOCABULARY)


def allowed(matcher):
    row = VOCABULARY.new_row()
    assert matcher.fill(row)
    assert len(row) == words(VOCABULARY.size)
    return [i for i in range(VOCABULARY.size) if row[0] >> i & 1]


def test_any_text_comes_first_but_no_end():
    matcher = gate([THINK])
    assert allowed(matcher) == [A, B, C, THINK]
    assert matcher.accept(B)
    assert not matcher.accept(END)
    assert not matcher.is_accepting()
    assert matcher.forced() == []


def test_the_grammar_starts_behind_the_last_token_of_the_end():
    matcher = gate([B, C])
    for token in (B, B, A, C, B):
        assert matcher.accept(token)
    assert matcher.thinking
    assert matcher.accept(C)
    assert not matcher.thinking
    assert allowed(matcher) == [A]
    assert matcher.forced() == [A]
    assert not matcher.accept(B)
    assert matcher.accept(A)
    assert matcher.is_accepting()


@given(st.lists(st.sampled_from([A, B, C]), max_size=12), st.integers(0, 12))
def test_taking_back_leads_where_replaying_leads(tokens, back):
    matcher = gate([B, C])
    taken = [token for token in tokens if matcher.accept(token)]
    back = min(back, len(taken))
    fork = matcher.fork()
    matcher.rollback(back)
    for place, path in ((matcher, taken[: len(taken) - back]), (fork, taken)):
        replay = gate([B, C])
        assert all(map(replay.accept, path))
        assert allowed(place) == allowed(replay)
        assert place.thinking == replay.thinking
        assert place.is_accepting() == replay.is_accepting()
        assert place.is_finished() == replay.is_finished()


def test_more_than_was_accepted_cannot_be_taken_back():
    matcher = gate([THINK])
    assert matcher.accept(A)
    with pytest.raises(ValueError, match="fewer"):
        matcher.rollback(2)
    with pytest.raises(ValueError, match="at least one"):
        gate([])
