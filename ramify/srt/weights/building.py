"""Building a folder once, whatever number of processes ask for it at the same time.

.NAME.lock    held while one process builds; the others wait for it
.NAME.part    the folder being built; left over only by a killed process, then started afresh
NAME          the finished folder: it appears by one rename, so it is never seen half-made
"""

import fcntl
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Make `folder` by `build(part)` unless it is there. Returns `folder`.

    What `build` raises is passed on, and nothing is left behind.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():  # another process may have built it while we waited
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            try:
                build(part)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


@contextmanager
def stage(doing: str) -> Iterator[None]:
    """Say on the terminal, or in the log when there is none, what takes a while."""
    if not sys.stderr.isatty():
        logger.info("%s", doing)
        yield
        return
    from rich.console import Console  # only a terminal pays for the import

    with Console(stderr=True).status(doing):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the close, and by the death of the process
        yield
