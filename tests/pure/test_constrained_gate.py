"""The reasoning gate over a matcher that only counts: what it lets through, and when."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ramify.srt.constrained.base import words
from ramify.srt.constrained.reasoning_gate import EndMarker, Gates, ReasoningGate
from ramify.srt.constrained.vocabulary import Vocabulary

A, B, C, END, THINK, BC, CA, ABC, BCA = range(9)
PIECES = (b"a", b"b", b"c", b"", b"", b"bc", b"ca", b"abc", b"bca")
VOCABULARY = Vocabulary(PIECES, (END,), None, {b"bbc": THINK, b"stop": END})
TEXT = [i for i, piece in enumerate(PIECES) if piece]


class OnlyA:
    """Accepts A, any number of times; may end after each."""

    vocabulary = VOCABULARY
    nbytes = 7
    unenforced = ("x",)

    def __init__(self, seen=0):
        self.seen = seen

    def new_matcher(self):
        return OnlyA()

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


def gate(marker):
    return ReasoningGate(OnlyA(), EndMarker(marker, VOCABULARY))


def allowed(matcher):
    row = VOCABULARY.new_row()
    assert matcher.fill(row)
    assert len(row) == words(VOCABULARY.size)
    return [i for i in range(VOCABULARY.size) if row[0] >> i & 1]


def test_any_text_comes_first_but_no_end():
    matcher = gate("cc")
    assert allowed(matcher) == TEXT
    assert matcher.accept(B)
    assert not matcher.accept(END)
    assert not matcher.accept(THINK)
    assert not matcher.accept(99)
    assert not matcher.is_accepting()
    assert not matcher.is_finished()
    assert matcher.forced() == []


@pytest.mark.parametrize("path", [(B, B, A, C, B, C), (A, B, A, BC), (C, CA, ABC)], ids=str)
def test_the_grammar_starts_behind_the_marker_in_whatever_tokens(path):
    matcher = gate("bc")
    for token in path:
        assert matcher.thinking
        assert matcher.accept(token)
    assert not matcher.thinking
    assert allowed(matcher) == [A]
    assert matcher.forced() == [A]
    assert not matcher.accept(B)
    assert matcher.accept(A)
    assert matcher.is_accepting()


def test_no_token_brings_the_end_of_the_marker_and_more():
    """What is behind the marker is the grammar's, and a token cannot be cut."""
    matcher = gate("bc")
    assert allowed(matcher) == [i for i in TEXT if i != BCA]
    assert not matcher.accept(BCA)
    assert matcher.accept(B)
    assert allowed(matcher) == [i for i in TEXT if i not in (BCA, CA)], "b and ca spell bc, and a"
    assert not matcher.accept(CA)
    assert matcher.thinking
    assert matcher.accept(A)
    assert CA in allowed(matcher)


def test_a_special_token_may_be_the_marker():
    matcher = gate("bbc")
    assert allowed(matcher) == sorted([*TEXT, THINK])
    assert matcher.accept(B)
    assert matcher.accept(THINK)
    assert not matcher.thinking
    assert allowed(matcher) == [A]


@given(st.lists(st.sampled_from(range(9)), max_size=12), st.sampled_from(["bc", "aab", "bcb"]))
def test_the_mask_is_what_is_accepted_and_the_marker_where_the_text_has_it(tokens, marker):
    matcher, text = gate(marker), b""
    for token in tokens:
        may = token in allowed(matcher)
        if not matcher.thinking:
            break
        assert matcher.accept(token) == may
        text += PIECES[token] if may else b""
        assert matcher.thinking == (marker.encode() not in text)
        assert matcher.thinking or text.endswith(marker.encode())


@given(st.lists(st.sampled_from([A, B, C, BC, BCA]), max_size=12), st.integers(0, 12))
def test_taking_back_leads_where_replaying_leads(tokens, back):
    matcher = gate("bc")
    taken = [token for token in tokens if matcher.accept(token)]
    back = min(back, len(taken))
    fork = matcher.fork()
    matcher.rollback(back)
    for place, path in ((matcher, taken[: len(taken) - back]), (fork, taken)):
        replay = gate("bc")
        assert all(map(replay.accept, path))
        assert allowed(place) == allowed(replay)
        assert place.thinking == replay.thinking
        assert place.is_accepting() == replay.is_accepting()
        assert place.is_finished() == replay.is_finished()


def test_a_fork_goes_its_own_way():
    matcher = gate("bc")
    assert matcher.accept(B)
    fork = matcher.fork()
    assert fork.accept(C)
    assert (fork.thinking, matcher.thinking) == (False, True)
    fork.rollback(2)
    assert matcher.accept(C)


def test_more_than_was_accepted_cannot_be_taken_back():
    matcher = gate("bc")
    assert matcher.accept(A)
    with pytest.raises(ValueError, match="fewer"):
        matcher.rollback(2)
    with pytest.raises(ValueError, match="not empty"):
        gate("")


def test_a_gated_grammar_is_the_same_behind_the_gate():
    """The grammar is shared and stays as it is; each request has a gate of its own."""
    gates, grammar = Gates("bc"), OnlyA()
    gated = gates.before(grammar)
    assert (gated.nbytes, gated.unenforced, gated.vocabulary) == (7, ("x",), VOCABULARY)
    assert gates.before(grammar).end is gated.end, "what a vocabulary costs is paid once"
    other = OnlyA()
    other.vocabulary = Vocabulary((b"c", b"b", b"a", b""), (END,))
    assert gates.before(other).end is not gated.end, "tokens of one mean nothing in another"
    first, second = gated.new_matcher(), gated.new_matcher()
    assert first.accept(BC)
    assert (first.thinking, second.thinking) == (False, True)
