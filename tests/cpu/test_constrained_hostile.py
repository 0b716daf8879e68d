"""Every hostile grammar that we know, through the real engine: an answer in time, and no harm.

A grammar that is taken is walked: each token it allows must be accepted, each mask must be cheap,
or the request fails with an error of its own.
"""

import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hostile_grammars import all_of_them

from ramify.srt.constrained.base import GrammarError, words
from ramify.srt.constrained.child_process import CompileLimits
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.constrained.guard import Guarded
from ramify.srt.constrained.manager import GrammarManager
from ramify.srt.grammar import GrammarSpec

VOCAB_SIZE = 49_152
CODES = {"invalid_grammar", "unsupported_schema", "grammar_too_large", "grammar_timeout"}
LIMITS = CompileLimits(timeout_s=1.0)
ANSWER_S = 6.0  # with the start of a new child, on a busy machine
GROWTH_MIB = 200
WALK = 30
# An engine counts its work while it follows an output, too: these it gives up only then, and the
# request fails. Any other that refuses what its mask allows is wrong.
GIVEN_UP = {"schema: no end", "lenient: no end", "lenient: one of 500 alike"}

pytestmark = pytest.mark.model


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.fixture(scope="module")
def manager(smollm2):
    made = GrammarManager(BackendSource("llguidance", str(smollm2.path), VOCAB_SIZE), LIMITS)
    made.warm_up()
    assert settled(made, GrammarSpec("regex", "ready"), 30.0).state == "ready"
    yield made
    made.close()


def settled(manager: GrammarManager, spec: GrammarSpec, timeout_s: float):
    """The ticket, pending if it takes longer than `timeout_s`."""
    ticket, ends = manager.request(spec), time.monotonic() + timeout_s
    while ticket.state == "pending" and time.monotonic() < ends:
        manager.wait(0.2)
    return ticket


def allowed(row) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))


def walk(grammar) -> str | None:
    """What is wrong with a walk along allowed tokens; None for one that ends well or cleanly."""
    matcher, draw = Guarded(grammar.new_matcher()), random.Random(1)
    row = np.zeros(words(VOCAB_SIZE), np.int32)
    try:
        for step in range(WALK):
            if not matcher.fill(row):
                return None if matcher.is_finished() else f"no way on at {step}"
            tokens = allowed(row)
            if step == 0 and not refuses_others(matcher, tokens, row):
                return "took a token that its mask does not allow"
            if not matcher.accept(int(draw.choice(tokens))):
                return f"refused its own token at {step}"
    except GrammarError as error:
        return None if error.code in CODES else f"failed with {error.code}"
    return None


def refuses_others(matcher, tokens, row) -> bool:
    """Whether a token that may not come is refused and changes nothing."""
    other = next((i for i in range(1000, VOCAB_SIZE) if i not in set(tokens[:2000].tolist())), None)
    if other is None or other in tokens:
        return True
    again = np.zeros_like(row)
    return not matcher.accept(other) and matcher.fill(again) and bool((again == row).all())


def test_no_grammar_does_harm(manager):
    """Each is followed at once by a harmless one, which has to be ready in the same time."""
    before, wrong = rss_mib(), []
    for i, (name, spec) in enumerate(all_of_them().items()):
        ticket = manager.request(spec)
        harmless = settled(manager, GrammarSpec("regex", f"[0-9]{{{i + 1}}}"), ANSWER_S)
        if harmless.state != "ready":
            wrong.append(f"{name}: the one behind it is {harmless.state}, {harmless.error}")
        if ticket.state == "pending":
            wrong.append(f"{name}: no answer")
        elif isinstance(ticket.error, GrammarError):
            if ticket.error.code not in CODES or not ticket.error.message.isprintable():
                wrong.append(f"{name}: {ticket.error.code}, {ticket.error.message!r}")
        elif ticket.error is not None:
            wrong.append(f"{name}: {ticket.error}")
        elif (found := walk(ticket.grammar)) is not None and name not in GIVEN_UP:
            wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)
    assert rss_mib() - before < GROWTH_MIB


def test_a_small_regex_cannot_make_the_cache_outgrow_its_limit(manager):
    """30 characters that hold 86 MB each, by what engines in Rust allocate, and look like 70 kB."""
    codes = [
        settled(manager, GrammarSpec("regex", f"((a{{100}}){{100}}){{{n}}}"), ANSWER_S).error.code
        for n in (97, 98)
    ]
    assert set(codes) <= {"grammar_too_large", "grammar_timeout"}
