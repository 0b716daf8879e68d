"""The memory for grammars: bounded by size and by number, refusals only for a while."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.cache import ENTRY_BYTES, GrammarCache, cache_key
from ramify.srt.grammar import GrammarSpec


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar, as far as a cache looks at one."""

    nbytes: int
    unenforced: tuple[str, ...] = ()

    def new_matcher(self):
        raise NotImplementedError


def cache(max_bytes=10 * ENTRY_BYTES, max_entries=100, refusal_s=60.0):
    return GrammarCache(max_bytes, max_entries, refusal_s)


def test_what_means_the_same_has_one_key():
    """Who sent a grammar in which field must not matter: they would compile it twice."""
    spec = GrammarSpec("regex", "a+", param="regex")
    assert cache_key(spec) == cache_key(GrammarSpec("regex", "a+", param="guided_regex"))


@pytest.mark.parametrize(
    "other",
    [
        GrammarSpec("lark", '{"a":1,"b":2}'),
        GrammarSpec("json_schema", '{"b":2,"a":1}'),
        GrammarSpec("json_schema", '{"a":1,"b":2}', strict=False),
    ],
    ids=["kind", "order of properties", "strictness"],
)
def test_what_may_mean_something_else_has_another_key(other):
    assert cache_key(other) != cache_key(GrammarSpec("json_schema", '{"a":1,"b":2}'))


def test_text_that_no_wire_can_carry_is_refused():
    """JSON can spell half a surrogate pair, and UTF-8 cannot."""
    with pytest.raises(GrammarError, match="surrogates") as caught:
        cache_key(GrammarSpec("regex", "a\ud800"))
    assert caught.value.code == "invalid_grammar"


def test_the_least_recently_used_goes_first():
    memory = cache(max_entries=2)
    memory.put(b"a", Grammar(1), 0.0)
    memory.put(b"b", Grammar(2), 0.0)
    assert memory.get(b"a", 0.0) == Grammar(1)
    memory.put(b"c", Grammar(3), 0.0)
    assert memory.get(b"b", 0.0) is None
    assert memory.get(b"a", 0.0) == Grammar(1)


def test_a_large_grammar_makes_room_for_itself():
    memory = cache(max_bytes=3 * ENTRY_BYTES)
    memory.put(b"a", Grammar(0), 0.0)
    memory.put(b"b", Grammar(0), 0.0)
    memory.put(b"c", Grammar(ENTRY_BYTES), 0.0)
    assert memory.get(b"a", 0.0) is None
    assert memory.get(b"b", 0.0) == Grammar(0)


def test_one_that_fills_the_cache_alone_pushes_nobody_out():
    memory = cache(max_bytes=3 * ENTRY_BYTES)
    memory.put(b"a", Grammar(0), 0.0)
    memory.put(b"huge", Grammar(3 * ENTRY_BYTES), 0.0)
    assert memory.get(b"huge", 0.0) is None
    assert memory.get(b"a", 0.0) == Grammar(0)


def test_a_grammar_counts_as_much_as_it_was_measured_to_hold():
    """Engines guess from the text: 30 characters of regex may hold 86 MB."""
    memory = cache(max_bytes=4 * ENTRY_BYTES)
    memory.put(b"a", Grammar(0), 0.0)
    memory.put(b"b", Grammar(0), 0.0, held_bytes=3 * ENTRY_BYTES)
    assert memory.get(b"a", 0.0) is None
    assert memory.nbytes == 4 * ENTRY_BYTES


def test_a_refusal_is_forgotten_and_a_grammar_is_not():
    """A time-out may be the machine's fault, so it must not stand for ever."""
    memory = cache(refusal_s=60.0)
    refusal = GrammarError("grammar_timeout", "too long")
    memory.put(b"bad", refusal, 100.0)
    memory.put(b"good", Grammar(1), 100.0)
    assert memory.get(b"bad", 159.9) is refusal
    assert memory.get(b"bad", 160.0) is None
    assert memory.get(b"good", 1e9) == Grammar(1)
    assert len(memory) == 1


entries = st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.integers(0, 4))


@given(st.lists(entries, max_size=40), st.integers(1, 5), st.integers(1, 8))
def test_neither_bound_is_ever_exceeded(puts, max_entries, max_units):
    memory = cache(max_bytes=max_units * ENTRY_BYTES, max_entries=max_entries)
    last = {}
    for key, units in puts:
        last[key] = Grammar(units * ENTRY_BYTES)
        memory.put(key, last[key], 0.0)
        held = {key: memory.get(key, 0.0) for key in last}
        found = {key: grammar for key, grammar in held.items() if grammar is not None}
        assert len(found) == len(memory) <= max_entries
        sizes = sum(ENTRY_BYTES + grammar.nbytes for grammar in found.values())
        assert sizes == memory.nbytes <= max_units * ENTRY_BYTES
        assert all(last[key] is grammar for key, grammar in found.items())
