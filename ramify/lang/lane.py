"""Jobs of one state, run one after another in the order given.

    idle --submit--> busy: one thread drains the queue --queue empty--> idle, the thread ends

A thread lives only while there is work that waits for a model, so a state costs nothing when it is
idle, needs no closing, and leaks nothing when it is forgotten. There is no shared pool: jobs of
one state may wait for another state, and in a pool of limited size such waits can block each other.
An event loop would not spare threads either: the functions that users write block while they read
variables, and so do engines that are called directly.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class Lane:
    """A queue of jobs and the thread that drains it while there are any. Jobs must not raise."""

    def __init__(self, *, use_thread: bool) -> None:
        self._use_thread = use_thread
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._busy = False

    def submit(self, job: Job, *, quick: bool) -> None:
        """Queue a job. When the lane is idle, a quick job runs at once in the caller."""
        with self._changed:
            self._jobs.append(job)
            if self._busy:
                return
            self._busy = True
        if quick or not self._use_thread:
            self._drain()
            return
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._drain,), name="ramify-lane", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads: slower, but not lost
            self._drain()

    def wait(self) -> None:
        """Return when all jobs so far are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def _drain(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._busy = False
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            job()
