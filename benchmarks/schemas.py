"""Real schemas: how many compile, whether their masks keep the promise, and what a mask costs.

    python benchmarks/schemas.py [--every N]

In the folder of the test data (RAMIFY_TEST_DATA) are `jsonschemabench/maskbench_dev_300.jsonl`
(schemas with valid and invalid instances, of JSONSchemaBench) and beside it
`jsts_draft2020-12.jsonl` (the official test suite). Every instance is written
in the model's own tokens, and taken if each token is in its mask and an end token is at its end.
Times are of this thread's own work, so that a busy machine shows less.
"""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import add, add_machine, argument

from ramify.srt.constrained.base import (
    CompiledGrammar,
    GrammarBackend,
    GrammarError,
    Row,
    compile_grammar,
)
from ramify.srt.constrained.choose import load_backend
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec
from ramify.srt.tokenization.tokenizer import Tokenizer
from ramify.srt.weights.source import prepare

DATA = Path(os.environ.get("RAMIFY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
FOLDER = DATA / "jsonschemabench"
REAL, OFFICIAL = "maskbench_dev_300.jsonl", "jsts_draft2020-12.jsonl"
SPACED, COMPACT = (", ", ": "), (",", ":")  # the latter inside of constants


@dataclass(frozen=True)
class Case:
    """A schema, and values that it allows and forbids."""

    name: str
    schema: Any
    valid: list[Any]
    invalid: list[Any]


@dataclass
class Outcome:
    """What came of some cases."""

    schemas: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # case: the error's text
    rejected: list[tuple[str, Any]] = field(default_factory=list)  # valid, and not taken
    accepted: list[tuple[str, Any]] = field(default_factory=list)  # invalid, and taken
    respelled: int = 0  # places where another token than the model's own was forced
    failed: list[tuple[str, str]] = field(default_factory=list)  # a limit on the way: why
    compile_s: list[float] = field(default_factory=list)
    mask_s: list[tuple[float, str]] = field(default_factory=list)  # with the case
    again_s: list[float] = field(default_factory=list)  # of masks, once a schema has been used
    forced_s: list[float] = field(default_factory=list)

    @property
    def compiled(self) -> int:
        return self.schemas - len(self.refused)


def real_cases(folder: Path) -> Iterator[Case]:
    """Schemas that people use, with instances judged by two validators."""
    for record in _records(folder / REAL):
        invalid = [item["data"] for item in record["invalid"]]
        yield Case(record["id"], record["schema"], record["valid"], invalid)


def official_cases(folder: Path) -> Iterator[Case]:
    """The groups of the official suite that are not optional and need no other file."""
    for group in _records(folder / OFFICIAL):
        if not group["optional"] and not group["remote"]:
            values: dict[bool, list[Any]] = {True: [], False: []}
            for test in group["tests"]:
                values[test["valid"]].append(test["data"])
            yield Case(group["id"], group["schema"], values[True], values[False])


def vocabulary() -> Vocabulary:
    """Of the embedded model."""
    return Vocabulary.of(Tokenizer.load(prepare("smollm2").path))


def judge(backend: GrammarBackend, table: Vocabulary, cases: Iterator[Case]) -> Outcome:
    """Compile each schema, and follow each of its instances through the masks."""
    out = Outcome()
    for case in cases:
        out.schemas += 1
        began = time.thread_time()
        try:
            grammar = compile_grammar(backend, GrammarSpec("json_schema", json.dumps(case.schema)))
        except GrammarError as error:
            out.refused[case.name] = error.message
            continue
        out.compile_s.append(time.thread_time() - began)
        for values, wanted, wrong in (
            (case.valid, True, out.rejected),
            (case.invalid, False, out.accepted),
        ):
            wrong += [
                (case.name, v) for v in values if takes(grammar, table, v, out, case) != wanted
            ]
        again = Outcome()
        for value in case.valid:
            takes(grammar, table, value, again, case)
        out.again_s += [seconds for seconds, _ in again.mask_s]
    return out


def takes(
    grammar: CompiledGrammar, table: Vocabulary, value: Any, out: Outcome, case: Case
) -> bool:
    """Whether the masks let a value be written, in either usual form."""
    texts = dict.fromkeys(
        json.dumps(value, ensure_ascii=False, separators=form) for form in (SPACED, COMPACT)
    )
    return any(_walk(grammar, table, text, out, case.name) for text in texts)


def _walk(grammar: CompiledGrammar, table: Vocabulary, text: str, out: Outcome, name: str) -> bool:
    """Follow a text: the model's own tokens, but for those that the grammar writes otherwise."""
    matcher, row = grammar.new_matcher(), table.new_row()
    rest = text.encode()
    tokens = table.write(text)[::-1]
    forced = matcher.forced()[:1]
    while True:
        token = tokens.pop() if tokens else table.end_ids[0]
        began = time.thread_time()
        try:
            matcher.fill(row)
        except GrammarError as error:
            out.failed.append((name, error.message))
            return False
        out.mask_s.append((time.thread_time() - began, name))
        if not _allows(row, token):
            if not rest or not forced or not rest.startswith(table.bytes_of(forced)):
                return False
            out.respelled += 1
            (token,) = forced
            tokens = table.write(rest[len(table.bytes_of(forced)) :].decode("utf-8", "replace"))
            tokens.reverse()
        assert matcher.accept(token), "a mask allows a token that is not accepted"
        if token in table.end_ids:
            return True
        began = time.thread_time()
        forced = matcher.forced()[:1]
        out.forced_s.append(time.thread_time() - began)
        rest = rest[len(table.bytes_of([token])) :]


def _allows(row: Row, token: int) -> bool:
    return bool(int(row[token // 32]) >> (token % 32) & 1)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").strip().split("\n"):
        yield json.loads(line)


def _print(title: str, out: Outcome) -> None:
    add(f"{title}: schemas", out.schemas)
    add(f"{title}: compiled", out.compiled)
    add(f"{title}: refused, %", 100 * len(out.refused) / out.schemas)
    for text, n in Counter(out.refused.values()).most_common():
        add(f"    {text[:50]}", n)
    add(f"{title}: valid instances rejected", len(out.rejected))
    add(f"{title}: invalid instances accepted", len(out.accepted))
    add(f"{title}: places with another token than the model's own", out.respelled)
    add(f"{title}: walks that met a limit", len(out.failed))
    for name, text in out.failed:
        add(f"    {name}", text)
    masks = [seconds for seconds, _ in out.mask_s]
    for what, unit, values in (
        ("compile, ms", 1e3, out.compile_s),
        ("mask, us", 1e6, masks),
        ("mask of a schema in use, us", 1e6, out.again_s),
        ("forced tokens, us", 1e6, out.forced_s),
    ):
        marks = statistics.quantiles(values, n=1000)
        for share in (500, 900, 990, 999):
            add(f"{title}: {what}, p{share / 10:g}", marks[share - 1] * unit)
    slow = Counter(name for seconds, name in out.mask_s if seconds > 1e-3)
    add(f"{title}: masks", len(masks))
    add(f"{title}: of them over 1 ms", sum(slow.values()))
    for name, n in slow.most_common(3):
        add(f"    {name}", n)


def main() -> None:
    if not FOLDER.is_dir():
        print("  RAMIFY_TEST_DATA holds no jsonschemabench: nothing to measure")
        return
    every = argument("every", 1)
    add_machine()
    table = vocabulary()
    backend = load_backend("auto", table)
    for title, cases in (("real", real_cases), ("official", official_cases)):
        chosen = [case for i, case in enumerate(cases(FOLDER)) if i % every == 0]
        _print(title, judge(backend, table, iter(chosen)))


if __name__ == "__main__":
    main()
