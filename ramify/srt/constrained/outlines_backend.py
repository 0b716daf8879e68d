"""outlines-core: regular expressions as tables of tokens, choices and simple schemas among them.

What it does otherwise than the contract, and this adapter hides or refuses:

    drops endings: of `a|ab` only "a" is left      -> REGEX is compiled as REGEX + a sentinel, a
                                                      token of its own; what may be followed by the
                                                      sentinel may end
    states that lead nowhere, such as those        -> taken out of the table
    inside the sentinel's own bytes
    ignores number ranges, and much else           -> unkept.py names and refuses it
    hangs, or ends its process, on some inputs     -> repeats are counted first; and it is only
                                                      for processes that may be killed
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import outlines_core  # type: ignore[import-untyped]
from outlines_core import json_schema

from ramify.srt.constrained import limits, unkept
from ramify.srt.constrained.base import Prepared, Row
from ramify.srt.constrained.idle import without_idle
from ramify.srt.constrained.limits import invalid, too_large
from ramify.srt.constrained.steps import StepsGrammar, only_ways
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec

SENTINEL = chr(0x10FFFF).encode()
MAX_REPEAT = 1000
MAX_REPEATS = 10_000  # of nested ones, multiplied
MAX_STATES = 20_000
MAX_REGEX = 64 * 1024  # bytes of what a schema becomes
NOT_KEPT = frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "prefixItems", "$ref")
)

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """An automaton over tokens. Of state s, tokens[s] (ascending) may come and lead to nexts[s];
    ends[s] says whether the output may end. State 0 is the start. Plain arrays."""

    tokens: tuple[Ints, ...]
    nexts: tuple[Ints, ...]
    ends: npt.NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in (*self.tokens, *self.nexts)) + self.ends.nbytes

    def pack(self) -> bytes:
        """Plain bytes, for another process."""
        sizes = np.array([len(row) for row in self.tokens], np.int32)
        columns = [np.concatenate(rows) for rows in (self.tokens, self.nexts)]
        return msgspec.msgpack.encode([a.tobytes() for a in (sizes, *columns, self.ends)])

    @staticmethod
    def unpack(data: bytes) -> "Table":
        """What `pack` packed."""
        sizes, tokens, nexts, ends = msgspec.msgpack.decode(
            data, type=tuple[bytes, bytes, bytes, bytes]
        )
        cuts = np.cumsum(np.frombuffer(sizes, np.int32))[:-1]
        columns = [np.split(np.frombuffer(column, np.int32), cuts) for column in (tokens, nexts)]
        return Table(tuple(columns[0]), tuple(columns[1]), np.frombuffer(ends, np.bool_))

    def next(self, state: int, token: int) -> int | None:
        """The state behind a token, None if it may not come."""
        tokens = self.tokens[state]
        at = int(np.searchsorted(tokens, token))
        return int(self.nexts[state][at]) if at < len(tokens) and tokens[at] == token else None


class OutlinesSteps:
    """The states on one output's way through a table."""

    def __init__(self, table: Table, vocabulary: Vocabulary, way: tuple[int, ...] = (0,)) -> None:
        self._table = table
        self._vocabulary = vocabulary
        self._way = list(way)

    def mask(self, row: Row) -> None:
        tokens = self._table.tokens[self._way[-1]]
        bits = np.zeros(row.size * 32, np.uint8)
        bits[tokens] = 1
        row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def step(self, token: int) -> bool:
        state = self._table.next(self._way[-1], token)
        if state is not None:
            self._way.append(state)
        return state is not None

    def back(self, n: int) -> None:
        del self._way[-n:]

    def forced(self) -> list[int]:
        """Only tokens without an alternative, as every way to write a text is allowed."""
        return only_ways(self, self._vocabulary)

    def may_end(self) -> bool:
        return bool(self._table.ends[self._way[-1]])

    def must_end(self) -> bool:
        return not len(self._table.tokens[self._way[-1]])

    def copy(self) -> "OutlinesSteps":
        return OutlinesSteps(self._table, self._vocabulary, tuple(self._way))


class OutlinesBackend:
    """outlines-core for one vocabulary."""

    name = "outlines"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        by_piece: dict[bytes, list[int]] = {SENTINEL: [vocabulary.size]}
        for i, piece in enumerate(vocabulary.pieces):
            if piece:
                by_piece.setdefault(piece, []).append(i)
        # It wants an end token that is none of these, and adds it where a state is final.
        self._tokens = outlines_core.Vocabulary(vocabulary.size + 1, by_piece)

    def prepare(self, spec: GrammarSpec) -> Prepared:
        """Makes the table too: the engine may hang or die, and what it gives is slow to read."""
        regex, unenforced = _regex(spec, limits.check(spec))
        check_repeats(regex)
        try:
            index = outlines_core.Index(f"(?:{regex})\\x{{10FFFF}}", self._tokens)
        except ValueError as error:
            raise invalid(_message(error)) from error
        table = make_table(index.get_transitions(), index.get_initial_state(), self.vocabulary.size)
        return Prepared(spec.kind, data=table.pack(), unenforced=unenforced)

    def build(self, prepared: Prepared) -> StepsGrammar:
        table = Table.unpack(prepared.data)
        start = OutlinesSteps(table, self.vocabulary)
        return StepsGrammar(start, self.vocabulary, table.nbytes, prepared.unenforced).checked()


def make_table(transitions: dict[int, dict[int, int]], start: int, sentinel: int) -> Table:
    """The part of an automaton that leads from its start to an end. Raises GrammarError.

    An end is where the sentinel leads to a state from which nothing follows but its own end token.
    """
    if len(transitions) > MAX_STATES:
        raise too_large(f"{len(transitions)} states, at most {MAX_STATES} are allowed")
    final = {s for s, moves in transitions.items() if any(t > sentinel for t in moves)}
    ends = {s for s, moves in transitions.items() if moves.get(sentinel) in final}
    live = _leading_to(ends, transitions, sentinel)
    order = [start, *sorted(live - {start})]
    number = {state: i for i, state in enumerate(order)}
    moves = [
        sorted(
            (t, number[n]) for t, n in transitions.get(s, {}).items() if t < sentinel and n in live
        )
        for s in order
    ]
    return Table(
        tuple(np.array([token for token, _ in row], np.int32) for row in moves),
        tuple(np.array([state for _, state in row], np.int32) for row in moves),
        np.array([state in ends for state in order]),
    )


def _leading_to(ends: set[int], transitions: dict[int, dict[int, int]], sentinel: int) -> set[int]:
    before: dict[int, set[int]] = {}
    for state, moves in transitions.items():
        for token, after in moves.items():
            if token < sentinel:
                before.setdefault(after, set()).add(state)
    live, todo = set(ends), list(ends)
    while todo:
        new = before.get(todo.pop(), set()) - live
        live |= new
        todo += new
    return live


def _regex(spec: GrammarSpec, value: Any) -> tuple[str, tuple[str, ...]]:
    """The regular expression of a spec, whose text holds `value`, and what it lets go.

    Raises GrammarError."""
    if spec.kind == "regex":
        return unkept.without_anchors(spec.text), ()
    if spec.kind == "choice":
        return "|".join(map(_quoted, value)), ()
    if spec.kind == "json_schema":
        schema = without_idle(value)
        unenforced = unkept.unenforced(schema, spec.strict, "outlines", NOT_KEPT)
        try:
            regex = json_schema.build_regex_from_schema(json.dumps(schema), whitespace_pattern="")
        except ValueError as error:
            raise invalid(_message(error)) from error
        return str(regex), unenforced
    raise invalid(f"outlines has no {spec.kind}; llguidance has ebnf and lark, xgrammar has tags")


def _quoted(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def check_repeats(regex: str) -> None:
    """Raises GrammarError for what unrolls into too many states: a{n} is n states."""
    if len(regex.encode()) > MAX_REGEX:
        raise too_large(f"a regular expression of {len(regex.encode())} bytes")
    groups = [1]  # the largest product in each open group
    last = 1  # of the item just read
    for part in re.finditer(
        r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)(?:,(\d*))?\}|.", regex, re.DOTALL
    ):
        if part[1] is not None:
            count = int(part[2] or part[1])
            last *= max(count, 1)
            if count > MAX_REPEAT or last > MAX_REPEATS:
                raise too_large(f"position {part.start()}: too many repeats for outlines")
        elif part[0] == "(":
            groups.append(1)
        elif part[0] == ")" and len(groups) > 1:
            last = groups.pop()
        elif part[0] not in "*+?":
            last = 1
        groups[-1] = max(groups[-1], last)


def _message(error: ValueError) -> str:
    """The last line of a message: before it comes the regex again, with the sentinel."""
    text = str(error).strip().split("\n")[-1].removeprefix("error: ")[:200]
    return f"bad regular expression: {text}"
