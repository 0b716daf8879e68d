"""Which candidate is taken, from times that are made up."""

import pytest

from ramify.srt.tuning.choose import LEAST_GAIN, MOST_LOSS, Timed, choose, gain, time_in_turn


def timed(**seconds):
    return [Timed(name, tuple(times)) for name, times in seconds.items()]


def best(**seconds):
    return choose(timed(**seconds)).candidate


def test_gain_is_the_mean_of_the_loads_each_counting_alike():
    """Twice as fast and half as fast cancel out, however long each load takes."""
    default, other = timed(default=[1.0, 100.0], other=[2.0, 50.0])
    assert gain(default, other) == pytest.approx(0.0)
    default, other = timed(default=[1.0, 1.0], other=[0.5, 1.0])
    assert gain(default, other) == pytest.approx(2**0.5 - 1)


def test_the_fastest_is_taken():
    assert best(default=[1.0, 1.0], a=[0.9, 0.9], b=[0.8, 0.8], c=[0.85, 0.85]) == "b"


def test_the_default_stays_for_less_than_the_least_gain():
    assert best(default=[1.0], other=[1 / (1 + LEAST_GAIN * 0.9)]) == "default"
    assert best(default=[1.0], other=[1 / (1 + LEAST_GAIN * 1.1)]) == "other"


def test_nothing_is_taken_that_makes_a_load_much_slower():
    """A gain at one batch must not be paid for at another."""
    slower = 1 + MOST_LOSS * 1.1
    assert best(default=[1.0, 1.0], greedy=[0.5, slower]) == "default"
    assert best(default=[1.0, 1.0], greedy=[0.5, slower], fair=[0.9, 1.0]) == "fair"
    assert best(default=[1.0, 1.0], other=[0.5, 1 + MOST_LOSS * 0.9]) == "other"


def test_among_equals_the_first_is_taken():
    assert best(default=[1.0], a=[0.5], b=[0.5]) == "a"
    assert best(default=[1.0]) == "default"


def test_candidates_take_turns_and_the_shortest_time_counts():
    calls = []

    def seconds(candidate, load):
        """A clock that has a bad second round, and a disturbed first call of b."""
        calls.append((candidate, load))
        now = len(calls)
        return {"a": 3.0, "b": 2.0}[candidate] * load + (now > 4) + 10.0 * (now == 2)

    found = time_in_turn(["a", "b"], [1.0, 5.0], seconds, rounds=2)
    assert calls == [("a", 1.0), ("b", 1.0), ("a", 5.0), ("b", 5.0)] * 2
    assert found == [Timed("a", (3.0, 15.0)), Timed("b", (3.0, 10.0))]
