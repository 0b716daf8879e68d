"""Thinking told apart from the answer: the table, and a splitter that no cutting misleads."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.errors import ConfigError
from ramify.srt.reasoning import MAX_LEAD, NAMES, PARSERS, Markers, Parts, Splitter, split

THINK = Markers("<think>", "</think>")
# Markers that begin like themselves further on: where a splitter is easily misled.
MARKERS = [THINK, Markers("aab", "aaab"), Markers("ab", "aa"), Markers("◁t▷", "◁/t▷")]


@pytest.mark.parametrize(
    ("text", "inside", "parts"),
    [
        ("<think>a</think>b", False, ("a", "b")),
        ("<think>a</think>b", True, ("a", "b")),
        ("a</think>b", True, ("a", "b")),
        ("a</think>b", False, ("", "a</think>b")),
        (" \n<think>\na</think>\n\nb", False, ("\na", "\n\nb")),
        ("a<think>b", False, ("", "a<think>b")),
        ("a<think>b</think>c", True, ("a<think>b", "c")),
        ("<think>a</think>b</think><think>c", False, ("a", "b</think><think>c")),
        ("<think>a</thin", False, ("a</thin", "")),
        ("<thin", False, ("", "<thin")),
        ("<thin", True, ("<thin", "")),
        ("</think>", True, ("", "")),
        ("", True, ("", "")),
        ("  ", False, ("", "  ")),
        (" " * MAX_LEAD + "<think>a", False, ("a", "")),
        (" " * (MAX_LEAD + 1) + "<think>a", False, ("", " " * (MAX_LEAD + 1) + "<think>a")),
    ],
)
def test_a_text_by_kind(text, inside, parts):
    assert split(text, THINK, inside=inside) == parts


def like(markers: Markers) -> st.SearchStrategy[str]:
    """Texts of markers, parts of them, and letters that they consist of."""
    letters = [*markers.begin, *markers.end, " ", "x", "\n" * 20]
    return st.lists(
        st.sampled_from(
            [markers.begin, markers.end, markers.end[:-1], markers.begin[:-1], *letters]
        )
    ).map("".join)


@given(st.data(), st.sampled_from(MARKERS), st.booleans())
def test_any_cutting_of_the_text_gives_the_same(data, markers, inside):
    text = data.draw(like(markers))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split(text, markers, inside=inside)
    splitter, told = Splitter(markers, inside=inside), Parts()
    for piece in pieces:
        told = told.with_more(splitter.push(piece))
        assert whole.reasoning.startswith(told.reasoning), "what was told is never taken back"
        assert whole.content.startswith(told.content)
    assert told.with_more(splitter.finish()) == whole


@given(st.data(), st.sampled_from(MARKERS), st.booleans())
def test_nothing_is_lost_but_markers(data, markers, inside):
    text = data.draw(like(markers))
    reasoning, content = split(text, markers, inside=inside)
    assert markers.end not in reasoning
    ways = [
        begin + reasoning + end + content
        for begin in ("", markers.begin)
        for end in ("", markers.end)
    ]
    assert text in ways or text.lstrip() in ways


@given(st.data(), st.sampled_from(MARKERS))
def test_little_is_held_back(data, markers):
    """A client sees text as it comes: no more is held than a marker and white space before it."""
    splitter = Splitter(markers, inside=True)
    text, told = data.draw(like(markers)), 0
    for end in range(len(text)):
        told += sum(map(len, splitter.push(text[end])))
        markers_seen = len(markers.begin) + len(markers.end)
        assert end + 1 - told <= MAX_LEAD + 2 * markers_seen


def test_what_comes_next_is_known_as_early_as_can_be():
    splitter = Splitter(THINK, inside=False)
    assert (splitter.push("<thin"), splitter.thinking) == (Parts(), False)
    assert (splitter.push("k>a"), splitter.thinking) == (Parts("a"), True)
    assert (splitter.push("b</think"), splitter.thinking) == (Parts("b"), True)
    assert (splitter.push(">c"), splitter.thinking) == (Parts("", "c"), False)
    assert splitter.finish() == Parts()


def test_every_parser_of_the_table_can_split():
    for name, markers in PARSERS.items():
        text = f"{markers.begin}why{markers.end}so"
        assert split(text, markers, inside=markers.starts_inside) == ("why", "so"), name
        check_engine(EngineConfig(reasoning_parser=name))
    assert PARSERS["deepseek-r1"].starts_inside
    assert not PARSERS["qwen3"].starts_inside


def test_an_unknown_parser_is_refused_with_the_names_of_all():
    with pytest.raises(ConfigError) as caught:
        check_engine(EngineConfig(reasoning_parser="deepseek"))
    assert "reasoning_parser" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
