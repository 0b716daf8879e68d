"""A mask that takes long holds up every request of the batch: its own request has to go."""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.guard import REHEARSED, Guarded, rehearse
from ramify.srt.constrained.vocabulary import Vocabulary

SIZE = 64
ROW = np.zeros(2, np.int32)


@dataclass
class Matcher:
    """Allows every token, after work, or after a wait in which others have the processor."""

    fill_s: float = 0.0
    accept_s: float = 0.0
    wait_s: float = 0.0
    accepted: tuple[int, ...] = ()
    finished_at: int = 1000

    def fill(self, row) -> bool:
        time.sleep(self.wait_s)
        work(self.fill_s)
        row[:] = -1
        return True

    def accept(self, token) -> bool:
        work(self.accept_s)
        self.accepted += (token,)
        return True

    def forced(self) -> list[int]:
        return []

    def is_finished(self) -> bool:
        return len(self.accepted) >= self.finished_at

    def fork(self) -> "Matcher":
        return Matcher(self.fill_s, self.accept_s, self.wait_s, self.accepted)


@dataclass
class Grammar:
    matcher: Matcher
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary((b"a",) * SIZE, end_ids=(0,)))

    def new_matcher(self) -> Matcher:
        return self.matcher


def work(seconds: float) -> None:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def spent(matcher: Guarded, most: int = 50) -> int | None:
    """Tokens until its allowance is spent, None if it lasts."""
    for n in range(most):
        try:
            matcher.fill(ROW)
        except GrammarError:
            return n
        matcher.accept(n)
    return None


def test_masks_that_take_too_much_work_fail_after_some():
    assert 1 <= spent(Guarded(Matcher(fill_s=0.01), most_s=0.03, earned_s=0.001)) <= 4


def test_what_a_token_costs_to_accept_counts_too():
    assert 1 <= spent(Guarded(Matcher(accept_s=0.01), most_s=0.03, earned_s=0.001)) <= 4


def test_work_that_is_earned_never_fails():
    assert spent(Guarded(Matcher(fill_s=0.001), most_s=0.03, earned_s=0.01)) is None


def test_one_slow_mask_is_forgiven():
    """The interpreter collects garbage on whatever thread happens to ask for memory."""
    inner = Matcher(fill_s=0.02)
    matcher = Guarded(inner, most_s=0.03, earned_s=0.002)
    assert matcher.fill(ROW)
    inner.fill_s = 0.0
    assert spent(matcher) is None


def test_a_busy_machine_fails_nobody():
    """The request whose mask waited for the processor did nothing wrong."""
    assert spent(Guarded(Matcher(wait_s=0.05), most_s=0.03, earned_s=0.0), most=3) is None


def test_a_fork_has_no_new_allowance():
    matcher = Guarded(Matcher(fill_s=0.02), most_s=0.03, earned_s=0.0)
    matcher.fill(ROW)
    with pytest.raises(GrammarError):
        matcher.fork().fill(ROW)


def test_a_rehearsal_follows_allowed_tokens_over_the_whole_vocabulary():
    grammar = Grammar(Matcher())
    rehearse(grammar)
    assert len(set(grammar.matcher.accepted)) == REHEARSED
    assert min(grammar.matcher.accepted) < SIZE / 4
    assert max(grammar.matcher.accepted) > SIZE * 3 / 4


def test_a_rehearsal_ends_with_the_output():
    grammar = Grammar(Matcher(finished_at=2))
    rehearse(grammar)
    assert len(grammar.matcher.accepted) == 2


@pytest.mark.parametrize("slow", [{"fill_s": 0.01}, {"accept_s": 0.01}])
def test_a_rehearsal_finds_what_is_slow(slow):
    with pytest.raises(GrammarError) as caught:
        rehearse(Grammar(Matcher(**slow)), limit_s=0.03)
    assert caught.value.code == "grammar_timeout"
