"""The environment of server processes: where they find the fakes."""

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """Ours, with this folder before whatever path leads to the package under test."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
