"""The thread that reads and writes page files, so that computing never waits for a disk.

    begin -> reads  --.                       .-> done -> poll
             writes --+-> one move at a time -+
    (writes and drops in their order)

Reads go first: a request waits for each of them, and for a write nobody does. A read begun after a
drop or a write of the same file may find it still, or not yet; both are correct, as equal keys hold
equal content and a file that is not there is an answer.
"""

import logging
import threading
import time
from collections import deque

from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.page_files import PageFiles
from ramify.radix_cache.plans import FileDone, FileDrop, FileRead, FileWrite

logger = logging.getLogger(__name__)

WARN_EVERY_S = 60.0  # a full disk fails every write; one line a minute says so

FileMove = FileWrite | FileRead | FileDrop


class FileWorker:
    """One thread between host slots and page files.

    Every FileWrite and FileRead that was begun ends with exactly one FileDone, whatever happens. A
    failure is a FileDone that is not ok and, at most once in WARN_EVERY_S, a line in the log.
    """

    def __init__(self, files: PageFiles, host: HostPool, max_queued: int = 1024) -> None:
        """`max_queued`: with as many writes and drops waiting, a further write is refused."""
        self._files = files
        self._host = host
        self._max_queued = max_queued
        self._reads: deque[FileRead] = deque()
        self._writes: deque[FileWrite | FileDrop] = deque()
        self._running: FileMove | None = None
        self._done: list[FileDone] = []
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._failures = 0  # since the last warning; the thread's own, like the next
        self._warn_at = 0.0
        self._thread = threading.Thread(target=self._run, name="page-files", daemon=True)
        self._thread.start()

    def begin(self, move: FileMove) -> None:
        """Queue a move. Never waits: a write that finds the queue full is refused as not ok."""
        with self._changed:
            full = len(self._writes) >= self._max_queued
            if self._closed or (full and isinstance(move, FileWrite)):
                self._end(move, ok=False)
            elif isinstance(move, FileRead):
                self._reads.append(move)
            else:
                self._writes.append(move)
            self._changed.notify_all()

    def poll(self) -> list[FileDone]:
        """What has ended since the last call, in the order in which it did."""
        with self._changed:
            done, self._done = self._done, []
        return done

    def wait(self, timeout_s: float) -> None:
        """Return when `poll` has something to tell, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._done, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish what is to be written, for at most `timeout_s`; then let the folder go.

        Reads are given up at once. A move that a stuck disk holds up is left to the thread, and
        the folder stays locked until the process ends.
        """
        with self._changed:
            self._closed = True
            self._give_up(self._reads)
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            if self._writes:
                logger.warning("%d pages were not written to disk in time", len(self._writes))
            self._give_up(self._writes)
        if not self._thread.is_alive():
            self._files.close()

    def _run(self) -> None:
        try:
            while move := self._next():
                ok = self._carry_out(move)
                with self._changed:
                    self._running = None
                    self._end(move, ok)
        finally:  # also when it ends by a bug of ours: nobody may wait for what will never come
            self._abandon()

    def _next(self) -> FileMove | None:
        """The move to do now; waits for one. None: closed, and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._reads or self._writes or self._closed)
            queue: deque[FileRead] | deque[FileWrite | FileDrop] = self._reads or self._writes
            self._running = queue.popleft() if queue else None
            return self._running

    def _carry_out(self, move: FileMove) -> bool:
        try:
            match move:
                case FileWrite(slot, record):
                    self._files.write(record, self._host.raw(slot))
                case FileRead(record, slot):
                    self._files.read(record, self._host.raw(slot))
                case FileDrop(key):
                    self._files.drop(key)
        except OSError as error:
            self._warn(move, error)
            return False
        return True

    def _warn(self, move: FileMove, error: OSError) -> None:
        self._failures += 1
        now = time.monotonic()
        if now < self._warn_at:
            return
        key = move.key if isinstance(move, FileDrop) else move.record.key
        logger.warning(
            "%s of page file %s failed: %s (failures since the last warning: %d)",
            type(move).__name__,
            key.hex(),
            error,
            self._failures,
        )
        self._failures, self._warn_at = 0, now + WARN_EVERY_S

    def _end(self, move: FileMove, ok: bool) -> None:
        if not isinstance(move, FileDrop):
            self._done.append(FileDone(move, ok))
            self._changed.notify_all()

    def _give_up(self, queue: deque[FileRead] | deque[FileWrite | FileDrop]) -> None:
        while queue:
            self._end(queue.popleft(), ok=False)

    def _abandon(self) -> None:
        with self._changed:
            self._closed = True
            if self._running is not None:
                self._end(self._running, ok=False)
            self._give_up(self._reads)
            self._give_up(self._writes)
