"""Few-shot evaluation: many questions after the same worked examples, as one batch.

    python examples/few_shot_eval.py                 an engine inside this process
    python examples/few_shot_eval.py --url URL       a server that runs already

The first lines of the question file are the worked examples. `run_batch` finds out by tracing that
every program begins with them, has them computed once, and runs the programs side by side.
`select` takes the choice that the model finds likeliest, so there is no answer to parse.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from serving import DATA, backend, metered, outcome

from ramify import function, select


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the right one of them."""

    question: str
    choices: list[str]
    answer: str


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON-lines file."""
    return [Question(**json.loads(line)) for line in path.read_text().splitlines()]


def few_shot(examples: Sequence[Question]) -> Any:
    """A program that answers one question after the examples."""
    shots = "".join(f"Question: {e.question}\nAnswer: {e.answer}\n\n" for e in examples)

    @function
    def ask(s: Any, question: str, choices: list[str]) -> None:
        s += "Answer each question with a word or two.\n\n" + shots
        s += "Question: " + question + "\nAnswer:"
        s += select("answer", [f" {choice}" for choice in choices])

    return ask


def evaluate(runs_on: Any, examples: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """The model's answers. Shows a progress bar on a terminal."""
    batch = [{"question": q.question, "choices": q.choices} for q in asked]
    states = few_shot(examples).run_batch(batch, backend=runs_on, progress_bar=True)
    return [state["answer"].strip() for state in states]


def accuracy(answers: Sequence[str], asked: Sequence[Question]) -> float:
    """The share of right answers."""
    right = sum(given == q.answer for given, q in zip(answers, asked, strict=True))
    return right / len(asked)


def wrong_table(answers: Sequence[str], asked: Sequence[Question]) -> Table:
    """The questions that were answered wrongly."""
    table = Table("question", "model", "right", title="wrong answers")
    for given, q in zip(answers, asked, strict=True):
        if given != q.answer:
            table.add_row(q.question, given, q.answer)
    return table


def report(args: argparse.Namespace) -> None:
    """Evaluate and print the result."""
    questions = read_questions(args.questions)
    examples, asked = questions[: args.shots], questions[args.shots :][: args.limit]
    if not asked:
        raise RuntimeError(f"{args.questions} has no question left after {args.shots} examples")
    with backend(args.url) as runs_on, metered(runs_on) as usage:
        answers = evaluate(runs_on, examples, asked)
    console = Console(highlight=False)
    console.print(wrong_table(answers, asked))
    console.print(f"accuracy {accuracy(answers, asked):.1%} of {len(asked)} questions")
    console.print(f"{usage}; {len(asked) / usage.seconds:.1f} questions/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Few-shot evaluation in one batch.")
    parser.add_argument("--url", help="a running server; without it an engine in this process")
    parser.add_argument("--questions", type=Path, default=DATA / "questions.jsonl")
    parser.add_argument("--shots", type=int, default=8, help="worked examples in every prompt")
    parser.add_argument("--limit", type=int, default=None, help="ask only so many questions")
    args = parser.parse_args(argv)
    return outcome(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
