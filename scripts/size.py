"""Hold the size budget: at most 400 lines a file and 70 a function. `--check` fails above the caps.

Without arguments it prints lines per folder, the largest files and the longest functions.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

FILE_CAP, FUNCTION_CAP = 400, 70
FOLDERS = ("ramify", "tests", "examples", "benchmarks", "scripts")


def python_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py"))]


def functions(path: Path) -> list[tuple[int, str]]:
    """(lines, place) of every function in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found.append((lines, f"{path}:{node.lineno} {node.name}"))
    return found


def main() -> int:
    files = [(len(path.read_text().splitlines()), path) for path in python_files()]
    longest = sorted((item for _, path in files for item in functions(path)), reverse=True)
    over = [f"{n} lines  {path}" for n, path in files if n > FILE_CAP]
    over += [f"{n} lines  {place}" for n, place in longest if n > FUNCTION_CAP]
    for line in over:
        print(f"over the cap ({FILE_CAP} a file, {FUNCTION_CAP} a function): {line}")
    if "--check" not in sys.argv:
        totals: Counter[str] = Counter()
        for n, path in files:
            totals["/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]] += n
        for folder, n in sorted(totals.items()):
            print(f"{n:7d}  {folder}")
        for n, place in longest[:5]:
            print(f"{n:7d}  {place}")
    print(f"{sum(n for n, _ in files)} lines in {len(files)} files, {len(over)} over the caps")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
