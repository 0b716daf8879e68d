"""An agent in the ReAct style: the model thinks, calls a calculator, reads what it said, goes on.

    python examples/agent.py                          an engine inside this process
    python examples/agent.py --url URL "QUESTION"     a server that runs already

How often the loop runs depends on what the model writes. Each step's prompt is the whole transcript
so far, and all of it but the last observation is in the cache already. A small model sometimes
writes nonsense; then it is told so, and after a few steps the agent gives up politely.
"""

import argparse
import ast
import math
import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from serving import backend, outcome

from ramify import function, gen

QUESTION = "A box holds 24 eggs. How many eggs are in 17 boxes?"
PROMPT = """\
Answer the question. Use the calculator for all arithmetic.

Question: A ticket costs 12 coins. How many coins do 9 tickets cost?
Thought: I need to multiply 12 by 9.
Action: calculate[12 * 9]
Observation: 108
Thought: I know the answer.
Final Answer: 108

Question: Tom had 80 apples and gave away 35 of them. How many apples are left?
Thought: I need to subtract 35 from 80.
Action: calculate[80 - 35]
Observation: 45
Thought: I know the answer.
Final Answer: 45

Question: A tray holds 6 cakes. How many cakes are on 15 trays?
Thought: I need to multiply 6 by 15.
Action: calculate[6 * 15]
Observation: 90
Thought: I know the answer.
Final Answer: 90

"""
MAX_LENGTH = 100  # characters of an expression
MAX_DIGITS = 60  # of a number, also one in between
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

# --- the tool ------------------------------------------------------------------------------------


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, or what is wrong with it: never raises.

    Only numbers, + - * / // % and brackets are understood. Nothing is ever executed: the text is
    parsed, and the tree is walked by us.
    """
    try:
        if len(expression) > MAX_LENGTH:
            raise ValueError(f"longer than {MAX_LENGTH} characters")
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError) as error:
        return f"error: {error}"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _bounded(OPERATORS[type(op)](_value(left), _value(right)))
    raise ValueError("only numbers, + - * / // % and brackets can be calculated")


def _bounded(number: int | float) -> int | float:
    if not math.isfinite(number) or abs(number) >= 10**MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return number


# --- the agent -----------------------------------------------------------------------------------


@function
def agent(s: Any, question: str, max_steps: int) -> str | None:
    """The answer, or None if there is none after `max_steps` steps."""
    s += PROMPT + f"Question: {question}\n"
    for step in range(max_steps):
        s += "Thought:" + gen(f"step {step}", stop=["Observation:", "Question:"])
        written = s[f"step {step}"]  # waits for the model: what happens next depends on it
        if (answer := final_answer(written)) is not None:
            return answer
        s += ("" if written.endswith("\n") else "\n") + f"Observation: {observation(written)}\n"
    return None


def final_answer(written: str) -> str | None:
    """What stands behind "Final Answer:" in a step, if it stands there."""
    found = re.search(r"Final Answer:[ \t]*(\S.*)", written)
    return found.group(1).strip() if found else None


def observation(written: str) -> str:
    """What the tool says to the action of a step."""
    found = re.search(r"calculate\[(.*?)\]", written)
    return calculate(found.group(1)) if found else "error: write an action like calculate[2 + 3]"


# --- the command ---------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Run the agent; print the transcript, the cost of each step, and the answer."""
    console = Console(highlight=False)
    with backend(args.url) as runs_on:
        options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 64}
        state = agent.run(args.question, args.max_steps, backend=runs_on, **options)
        answer, transcript = state.ret_value, state.text().removeprefix(PROMPT)
        metas = [
            meta
            for step in range(args.max_steps)
            if (meta := state.get_meta_info(f"step {step}")) is not None
        ]
    console.print(transcript.strip(), "", sep="\n", markup=False)
    table = Table("step", "prompt", "reused", "computed", title="prompt tokens of each step")
    for step, meta in enumerate(metas, start=1):
        prompt, reused = meta["prompt_tokens"], meta["cached_tokens"]
        table.add_row(*(f"{n:,}" for n in (step, prompt, reused, prompt - reused)))
    console.print(table)
    sorry = f"No answer after {len(metas)} steps, sorry: the model lost its thread."
    console.print(sorry if answer is None else f"Answer: {answer}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit code."""
    parser = argparse.ArgumentParser(description="An agent that uses a calculator.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", help="a running server; without it an engine in this process")
    parser.add_argument("--max-steps", type=int, default=5, choices=range(1, 21), metavar="N")
    args = parser.parse_args(argv)
    return outcome(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
