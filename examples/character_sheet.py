"""Character sheets: the model fills in a form, one for each of several characters, side by side.

    python examples/character_sheet.py                    an engine inside this process
    python examples/character_sheet.py --url URL "Mira, a cook" "Old Tom"

`gen(json_schema=Sheet)` keeps the output to a pydantic model: what comes back is always a sheet.
Keys, quotes and braces can only be what they are, so the engine writes them without asking the
model: those tokens are jumped over. `fork` shares the prompt among all characters.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from serving import backend, metered, outcome

from ramify import function, gen

CHARACTERS = (
    "Mira, who laughs at storms",
    "Old Tom, whose hammer made the anchor",
    "Zeph, who takes what is not his",
)
INTRO = """Characters of a sea story, each with a sheet in JSON.

Captain Brand, who sails the Heron and fears nobody:
{"name": "Captain Brand", "class": "sailor", "mood": "proud", "age": 52, "goal": "find the lost \
island", "gear": {"item": "brass spyglass", "weight": 2}}

Doctor Lin, who would rather be at home:
{"name": "Doctor Lin", "class": "healer", "mood": "afraid", "age": 34, "goal": "see her children \
again", "gear": {"item": "chest of herbs", "weight": 12}}

"""
MAX_TOKENS = 128  # more than the longest sheet takes


class Class(StrEnum):
    sailor = "sailor"
    smith = "smith"
    healer = "healer"
    thief = "thief"


class Mood(StrEnum):
    calm = "calm"
    proud = "proud"
    afraid = "afraid"
    merry = "merry"


Words = Annotated[str, Field(pattern="^[a-z]{1,9}( [a-z]{2,9}){1,3}$")]


class Gear(BaseModel):
    item: Words
    weight: int = Field(ge=1, le=20)


class Sheet(BaseModel):
    name: str = Field(max_length=24)
    kind: Class = Field(alias="class")
    mood: Mood
    age: int = Field(ge=10, le=99)
    goal: Words
    gear: Gear


@dataclass(frozen=True)
class Filled:
    """A sheet and what it took: tokens in all, and those that the grammar gave."""

    sheet: Sheet
    tokens: int
    jumped: int


@function
def fill(s: Any, characters: Sequence[str]) -> list[Filled]:
    """A sheet for each character. All branches run side by side."""
    s += INTRO
    branches = s.fork(len(characters))
    for branch, character in zip(branches, characters, strict=True):
        branch += f"{character}:\n"
        branch += gen("sheet", json_schema=Sheet, max_tokens=MAX_TOKENS, temperature=0.8)
    return [filled(branch) for branch in branches]


def filled(branch: Any) -> Filled:
    """What a branch has written, checked."""
    meta = branch.get_meta_info("sheet")
    sheet = Sheet.model_validate_json(branch["sheet"])
    return Filled(sheet, meta["completion_tokens"], meta["jump_forward_tokens"])


def table(sheets: Sequence[Filled]) -> Table:
    """The sheets, one a line, with the share of tokens that were jumped over."""
    made = Table("name", "class", "mood", "age", "goal", "gear", "tokens", "jumped over")
    for one in sheets:
        sheet, share = one.sheet, one.jumped / max(one.tokens, 1)
        made.add_row(
            sheet.name,
            sheet.kind,
            sheet.mood,
            str(sheet.age),
            sheet.goal,
            f"{sheet.gear.item} ({sheet.gear.weight})",
            str(one.tokens),
            f"{one.jumped} ({share:.0%})",
        )
    return made


def report(args: argparse.Namespace) -> None:
    """Fill the sheets in; print them and what they cost."""
    with backend(args.url, seed=args.seed) as runs_on, metered(runs_on) as usage:
        sheets = fill.run(args.characters, backend=runs_on).ret_value
    console = Console(highlight=False)
    console.print(table(sheets))
    jumped, tokens = (sum(getattr(one, name) for one in sheets) for name in ("jumped", "tokens"))
    console.print(f"\n{jumped} of {tokens} tokens were jumped over")
    console.print(str(usage))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Sheets that are always valid JSON.")
    parser.add_argument("characters", nargs="*", default=list(CHARACTERS), metavar="WHO")
    parser.add_argument("--url", help="a running server; without it an engine in this process")
    parser.add_argument("--seed", type=int, default=0, help="of the engine in this process")
    return outcome(lambda: report(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
