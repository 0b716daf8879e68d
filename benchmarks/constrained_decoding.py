"""What structure costs and what it saves: masks against none, forced tokens taken or sampled.

    python benchmarks/constrained_decoding.py [--threads N] [--rounds N]

Two engines take turns, one with jump-forward. The grammar that costs is a long text as a JSON
string: nothing in it is forced, and no output ends early. The one that saves is a character sheet.
With the data of `schemas.py`, outputs of 200 of its schemas and of 50 regexes are judged, and each
of their rows gets its part of the time that its step took to fill masks.
"""

import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
from measure import add, add_machine, argument, in_turn
from schemas import FOLDER, real_cases

from ramify.srt.constrained.base import Matcher
from ramify.srt.engine import Engine
from ramify.srt.errors import RequestError
from ramify.srt.execution.masks import MaskFiller, Masks

BATCH, NEW, MOST = 8, 128, 384
NUMBER = {"type": "integer", "minimum": 1, "maximum": 20}
SHEET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 24},
        "race": {"enum": ["human", "elf", "dwarf", "halfling"]},
        "profession": {"enum": ["wizard", "warrior", "thief", "healer"]},
        "level": NUMBER,
        "abilities": {
            "type": "object",
            "properties": {"strength": NUMBER, "dexterity": NUMBER, "wisdom": NUMBER},
            "required": ["strength", "dexterity", "wisdom"],
            "additionalProperties": False,
        },
        "quest": {"type": "string", "minLength": 10, "maxLength": 60},
    },
    "required": ["name", "race", "profession", "level", "abilities", "quest"],
    "additionalProperties": False,
}
TEXT = {"type": "string", "minLength": 2000, "maxLength": 4000}
REGEXES = (
    r"(yes|no|maybe)",
    r"[A-Z][a-z]{2,12}",
    r"[A-Z][a-z]+ [A-Z][a-z]+",
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    r"([01]\d|2[0-3]):[0-5]\d",
    r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)",
    r"[a-z0-9]{1,12}@[a-z]{2,10}\.(com|org|net)",
    r"#[0-9a-fA-F]{6}",
    r"-?\d{1,5}(\.\d{1,3})?",
    r"\$\d{1,3}(,\d{3})*\.\d\d",
    r"(red|green|blue)( (red|green|blue)){0,3}",
    r"[a-f0-9]{8}(-[a-f0-9]{4}){3}-[a-f0-9]{12}",
    r"https?://[a-z]{3,10}\.(io|dev)/[a-z]{1,8}",
    r"v\d{1,2}\.\d{1,2}\.\d{1,2}(-(alpha|beta|rc)\.\d)?",
    r"\(\d{3}\) \d{3}-\d{4}",
    r"[AEIOU]?[a-z]{3,8}[.!?]",
    r"(- [a-z ]{3,20}\n){2,4}",
    r"\d{1,3}%",
    r"(0|[1-9]\d{0,2})/(0|[1-9]\d{0,2})",
    r"[1-9]\d{0,2}(st|nd|rd|th)",
    r"(Mr|Mrs|Dr)\. [A-Z][a-z]{2,10}",
    r"(North|South)-(East|West), \d{1,3} km",
    r"[ACGT]{12,24}",
    r"(a|b)*abb",
    r"(ab|cd){3,6}",
    r"\w{4,10}",
    r"[^aeiou\s]{3,8}",
    r"\[(\d{1,2}, ){0,4}\d{1,2}\]",
    r"\{\"id\": \d{1,4}\}",
    r"<(b|i)>[a-z ]{3,20}</(b|i)>",
    r"def [a-z_]{2,10}\((self)?\):",
    r"SELECT [a-z]{2,8} FROM [a-z]{2,8};",
    r"[+-]\d{1,2}°[CF]",
    r"é{1,3}|日本|ok",
    r"(un|re)?(do|make|write)(ing|s)?",
    r"[IVXLC]{1,6}",
    r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day",
    r"(January|February|March|April|May|June|July) \d{1,2}, 20\d\d",
    r"room [A-D]\d{2}",
    r"[a-z]{2,4}(\.[a-z]{2,4}){1,3}",
    r"(\d{4} ){3}\d{4}",
    r"q[^q]{5,15}q",
    r"[A-Z]{2}\d{2} [A-Z]{3}",
    r"(win|lose|draw) \d-\d",
    r"(true|false|null)",
    r"0x[0-9a-f]{1,8}",
    r"[A-Z]{3}-\d{3,5}",
    r"(.|\n){5,20}end",
    r"(the|a) (cat|dog) (sat|ran)( (fast|home))?\.",
    r"[ab]{2}c?d*e{1,4}",
)


def asked(task: str, salt: int, i: int) -> str:
    """A prompt that shares nothing behind its first words with any other."""
    return f"<|im_start|>user\nNumber {salt * 1000 + i}: {task}<|im_end|>\n<|im_start|>assistant\n"


def speed(engine: Engine, salts: "count[int]", task: str, options: dict[str, Any]) -> float:
    """Tokens a second of a batch."""
    salt = next(salts)
    prompts = [asked(task, salt, i) for i in range(BATCH)]
    sampling = {"temperature": 1.0, **options}
    params = [{**sampling, "sampling_seed": salt * BATCH + i} for i in range(BATCH)]
    began = time.perf_counter()
    replies = engine.generate(prompts, params)
    took = time.perf_counter() - began
    return sum(len(reply["output_ids"]) for reply in replies) / took


def compare_jumping(on: Engine, off: Engine, rounds: int) -> None:
    """Forced tokens taken at once against the same ones sampled."""
    salts = {id(on): count(1), id(off): count(1)}  # the same prompts and seeds for both
    task = "Describe a character of a fantasy story."
    options = {"json_schema": SHEET, "max_new_tokens": MOST}
    runs = [partial(speed, engine, salts[id(engine)], task, options) for engine in (on, off)]
    for warm_up in runs:
        warm_up()
    before = on.server_info()["stats"]
    jumping, sampling = in_turn(rounds, *runs)
    after = on.server_info()["stats"]
    skipped, all_of_them = (
        after[key] - before[key] for key in ("jump_forward_tokens", "generated_tokens")
    )
    add("character sheets, batch 8: tokens forced, %", 100 * skipped / all_of_them)
    add("character sheets, batch 8: tokens/s with jump-forward", jumping)
    add("character sheets, batch 8: tokens/s without", sampling)
    add("character sheets, batch 8: ratio", jumping / sampling)


def compare_masking(engine: Engine, rounds: int) -> None:
    """The same number of tokens under a grammar and free."""
    salts, task = count(5000), "Tell a long story."
    free = {"max_new_tokens": NEW, "ignore_eos": True}
    runs = [
        partial(speed, engine, salts, task, {**free, "json_schema": TEXT}),
        partial(speed, engine, salts, task, free),
    ]
    for warm_up in runs:
        warm_up()
    constrained, unconstrained = in_turn(rounds, *runs)
    add("long texts, batch 8: tokens/s as a JSON string", constrained)
    add("long texts, batch 8: tokens/s unconstrained", unconstrained)
    add("long texts, batch 8: ratio", constrained / unconstrained)


def judge_outputs(engine: Engine, folder: Path) -> None:
    """What is generated under many constraints, all at once."""
    schemas = [case.schema for case in real_cases(folder)]
    wanted = [("schema", schema) for schema in schemas if can(engine, schema)][:200]
    wanted += [("regex", regex) for regex in REGEXES]
    with filled_masks() as per_row:
        began = time.perf_counter()
        replies = generate(engine, wanted, MOST)
        took = time.perf_counter() - began
    marks = statistics.quantiles(per_row, n=100)
    add("masks of a step, us a row, p50", marks[49] * 1e6)
    add("masks of a step, us a row, p99", marks[98] * 1e6)
    for kind in ("schema", "regex"):
        mine = [
            (rule, reply) for (k, rule), reply in zip(wanted, replies, strict=True) if k == kind
        ]
        ended = [(rule, reply) for rule, reply in mine if reason(reply) == "stop"]
        add(f"{kind}: outputs", len(mine))
        add(f"{kind}: ended by themselves", len(ended))
        add(f"{kind}: of them right", sum(keeps(kind, rule, r["text"]) for rule, r in ended))
        add(f"{kind}: stopped at {MOST} tokens", sum(reason(r) == "length" for _, r in mine))
    add(f"all {len(wanted)} at once, s", took)


@contextmanager
def filled_masks() -> Iterator[list[float]]:
    """Each row's part of the seconds that its step takes to fill masks, in this process."""
    times: list[float] = []
    fill = MaskFiller.fill

    def timed(filler: MaskFiller, matchers: Sequence[Matcher]) -> Masks | None:
        began = time.perf_counter()
        masks = fill(filler, matchers)
        if matchers:
            times.extend([(time.perf_counter() - began) / len(matchers)] * len(matchers))
        return masks

    MaskFiller.fill = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        MaskFiller.fill = fill  # type: ignore[method-assign]


def can(engine: Engine, schema: Any) -> bool:
    """Whether a schema is taken. Raises anything but a refusal."""
    try:
        engine.generate("a", {"json_schema": schema, "max_new_tokens": 1})
    except RequestError as error:
        if error.code != "unsupported_schema":
            raise
        return False
    return True


def generate(engine: Engine, wanted: list[tuple[str, Any]], most: int) -> list[dict[str, Any]]:
    """Replies to one prompt under each constraint, at temperature 1, with fixed seeds."""
    names = {"schema": "json_schema", "regex": "regex"}
    prompts = [asked(f"Answer as {kind}: {str(rule)[:400]}", 0, 0) for kind, rule in wanted]
    params = [
        {names[kind]: rule, "temperature": 1.0, "max_new_tokens": most, "sampling_seed": i}
        for i, (kind, rule) in enumerate(wanted)
    ]
    replies = engine.generate(prompts, params)
    assert isinstance(replies, list)
    return replies


def reason(reply: dict[str, Any]) -> str:
    return str(reply["meta_info"]["finish_reason"]["type"])


def keeps(kind: str, rule: Any, text: str) -> bool:
    """Whether a finished output is what was asked for, as an independent judge says.

    Numbers are judged in decimal: in binary, 5.1 is no multiple of 0.01.
    """
    if kind == "regex":
        return re.fullmatch(rule, text) is not None
    schema = json.loads(json.dumps(rule), parse_float=Decimal)
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        return bool(validator(schema).is_valid(json.loads(text, parse_float=Decimal)))
    except json.JSONDecodeError:
        return False


def main() -> None:
    add_machine()
    threads, rounds = argument("threads", 2), argument("rounds", 5)
    with (
        Engine("smollm2", threads=threads) as jumping,
        Engine("smollm2", threads=threads, jump_forward=False) as sampling,
    ):
        compare_jumping(jumping, sampling, rounds)
        compare_masking(sampling, rounds)
        if FOLDER.is_dir():
            judge_outputs(jumping, FOLDER)


if __name__ == "__main__":
    main()
