"""Independent jobs on a few threads, with their results in order."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def run_ordered(
    jobs: Sequence[Callable[[], T]],
    *,
    threads: int,
    ahead: int,
    done: Callable[[], None] = lambda: None,
) -> Iterator[T]:
    """The jobs' results in the jobs' order, as they become ready.

    At most `ahead` jobs are started or ready beyond the one that is waited for. When the iterator
    is closed early, or a job raises, jobs that have not begun are dropped; those that run are
    waited for, so that nothing of the batch goes on afterwards. `done` is called after each job,
    on its thread. Each job may block: no job waits for another one.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ramify-batch")
    try:
        for job in jobs:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(job))
            waiting[-1].add_done_callback(lambda _: done())
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def progress(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call after each job. It moves a bar when `shown` and on a terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("programs", total=total)
        yield lambda: bar.advance(task)
