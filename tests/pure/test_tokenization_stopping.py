"""Stop strings: the answer must not depend on how the text was cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.srt.tokenization.stopping import StopStrings

# A small alphabet, so that random stops overlap each other and themselves.
TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def whole(text, stops, keep):
    """The same rule, on the whole text at once."""
    found = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    if not found:
        return text, None
    end, start, stop = min(found)
    return text[: end if keep else start], stop


def streamed(text, stops, keep, sizes):
    watcher = StopStrings(stops, keep)
    given_out, matched = "", None
    while text and matched is None:
        size = next(sizes)
        emit, matched = watcher.push(text[:size])
        given_out, text = given_out + emit, text[size:]
    return given_out + watcher.finish(), matched


@given(TEXT, STOPS, st.booleans(), st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_any_cut_gives_what_the_whole_text_gives(text, stops, keep, sizes):
    assert streamed(text, stops, keep, iter(sizes)) == whole(text, stops, keep)


@given(TEXT, STOPS)
def test_only_a_possible_beginning_of_a_stop_is_held(text, stops):
    """A reader sees every character that no stop can take back, at once."""
    watcher = StopStrings(stops)
    emit, matched = watcher.push(text)
    if matched is None:
        held = text[len(emit) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        longer = (text[i:] for i in range(len(emit)))
        assert not any(stop.startswith(tail) for tail in longer for stop in stops)


def test_the_first_stop_to_be_complete_wins_and_the_longest_of_a_tie():
    assert StopStrings(["abcd", "c"]).push("abcd") == ("ab", "c")
    assert StopStrings(["c", "bc"]).push("abc") == ("a", "bc")


def test_nothing_follows_a_stop():
    watcher = StopStrings(["."], keep=True)
    assert watcher.push("one. two") == ("one.", ".")
    assert watcher.push("three") == ("", ".")
    assert watcher.finish() == ""


def test_without_stops_nothing_is_held():
    assert StopStrings([]).push("abc") == ("abc", None)
