"""Tree of thought: propose several ways to go on, score each of them, follow the best.

    python examples/tree_of_thought.py                    an engine inside this process
    python examples/tree_of_thought.py --url URL --width 4 --depth 3

`fork` makes branches that share everything written so far: the story is in the cache once, however
many sentences are tried after it. `select` asks the model for a verdict on each branch, and the
log-probabilities behind the verdict are the score.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from serving import backend, metered, outcome

from ramify import function, gen, select

OPENING = "A young fox came to the old bridge and saw that a plank was missing."
INTRO = "This is a short story for children. Every sentence follows from the one before.\n\n"
SENTENCE: dict[str, Any] = {
    "max_tokens": 32,
    "min_tokens": 4,
    "stop": [".", "\n"],
    "temperature": 0.8,
}
QUESTION = ".\n\nQuestion: Does the last sentence go on well? Answer yes or no.\nAnswer:"
VERDICTS = [" yes", " no"]


@dataclass
class Thought:
    """One sentence of the tree. Only the best of its siblings has children."""

    text: str
    score: float
    children: list["Thought"] = field(default_factory=list)


@function
def grow(s: Any, opening: str, width: int, depth: int) -> Thought:
    """A tree `depth` levels deep with `width` branches at each; the text follows the best."""
    root = Thought(opening, 0.0)
    s += INTRO + opening
    place = root
    for _ in range(depth):
        place.children = propose(s, width)
        place = best(place.children)
        s += " " + place.text
    return root


def propose(s: Any, width: int) -> list[Thought]:
    """`width` next sentences, each with its score. All branches run side by side."""
    branches = s.fork(width)
    branches += gen("sentence", **SENTENCE)
    branches += QUESTION + select("verdict", VERDICTS)
    return [Thought(sentence(branch), score(branch)) for branch in branches]


def sentence(branch: Any) -> str:
    """What a branch has proposed, on one line, with its full stop."""
    return " ".join(branch["sentence"].split()) + "."


def score(branch: Any) -> float:
    """How much likelier "yes" is than "no", as a difference of log-probabilities."""
    yes, no = branch.get_meta_info("verdict")["normalized_prompt_logprobs"]
    return float(yes - no)


def best(thoughts: Sequence[Thought]) -> Thought:
    """The thought with the highest score; the first one on ties."""
    return max(thoughts, key=lambda thought: thought.score)


def drawing(thought: Thought) -> Tree:
    """The tree for the terminal, with the path that was followed in bold."""
    tree = Tree(f"[bold]{escape(thought.text)}[/bold]")
    followed = best(thought.children) if thought.children else None
    for child in thought.children:
        if child is followed:
            branch = drawing(child)
            branch.label = f"[green]{child.score:+.2f}[/green] {branch.label}"
            tree.add(branch)
        else:
            tree.add(f"{child.score:+.2f} {escape(child.text)}")
    return tree


def report(args: argparse.Namespace) -> None:
    """Grow the tree; print it and what it cost."""
    with backend(args.url) as runs_on, metered(runs_on) as usage:
        root = grow.run(args.opening, args.width, args.depth, backend=runs_on).ret_value
    console = Console(highlight=False)
    console.print(drawing(root))
    console.print("\nscore: log-probability of yes - of no; bold: the way that was followed")
    console.print(str(usage))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Propose, score, follow the best.")
    parser.add_argument("opening", nargs="?", default=OPENING, help="the first sentence")
    parser.add_argument("--url", help="a running server; without it an engine in this process")
    parser.add_argument("--width", type=int, default=3, choices=range(1, 9), metavar="1..8")
    parser.add_argument("--depth", type=int, default=2, choices=range(1, 6), metavar="1..5")
    args = parser.parse_args(argv)
    return outcome(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
