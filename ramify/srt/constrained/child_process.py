"""The parent's handle of the process that tries grammars first (child.py).

A low priority alone does not keep a child off the cores that the model's threads share: each of
them waits for the slowest, and that one for the end of the child's time slice. So a long compile
rests while this process computes:

    compile   |---- FREE_S ----|-run-|   rest   |-run-|   rest   |-run-| ... verdict
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from ramify.srt.constrained import child_wire as wire
from ramify.srt.constrained.base import GrammarError, Prepared
from ramify.srt.errors import Unavailable
from ramify.srt.grammar import GrammarSpec

TOO_SLOW = "the grammar takes longer than {:g} s to compile"
TOO_LARGE = "the grammar needs more memory or depth than one may have"
BROKEN = "the grammar cannot be compiled"
FREE_S, RUN_S, REST_S = 0.03, 0.004, 0.006
BUSY = 0.5  # of a core: from here on this process computes
EXIT_S = 1.0  # for a child that has closed its end to be gone


@dataclass(frozen=True)
class CompileLimits:
    """What one grammar may cost. `start_s` is for the child to load; `nice` is how far it steps
    back behind what computes.

    `memory_bytes` is how far the child's address space may grow beyond its size when loaded;
    `grammar_bytes` is what a compiled grammar may hold, as each running request may hold one.
    """

    timeout_s: float = 5.0
    memory_bytes: int = 2**30
    grammar_bytes: int = 2**25
    nice: int = 10
    start_s: float = 60.0


class ChildProcess:
    """One child, loading from the start. Once it is no longer usable, `end` it and make another.

    Used by one thread, but `kill` may come from any.
    """

    def __init__(self, source: wire.BackendSource, limits: CompileLimits) -> None:
        self._limits = limits
        self._end, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "ramify.srt.constrained.child"),
                stdin=theirs.fileno(),
                start_new_session=True,
                env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        self._over = False
        opening = wire.Open(source, limits.memory_bytes, limits.grammar_bytes, limits.nice)
        with contextlib.suppress(OSError):  # `open` says that it is gone
            wire.send(self._end, opening)

    @property
    def usable(self) -> bool:
        """Whether it runs and may be asked; it was perhaps killed while nobody looked."""
        return not self._over and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self) -> None:
        """Wait until the engine is loaded. Raises Unavailable when it cannot be."""
        try:
            wire.receive(self._end, wire.Opened, self._limits.start_s)
        except (OSError, EOFError, ValueError) as error:  # a TimeoutError is an OSError
            self.end()
            raise Unavailable("grammars cannot be compiled: see the log", code="grammar") from error

    def try_out(self, spec: GrammarSpec) -> tuple[Prepared, int]:
        """The grammar, to be built here, and the bytes that it holds: the child has built it.

        Raises GrammarError when it could not, or did not live to tell.
        """
        try:
            ends = time.monotonic() + self._limits.timeout_s
            wire.send(self._end, wire.Compile(spec, self._limits.timeout_s), self._limits.timeout_s)
            self._await(ends)
            verdict = wire.receive(self._end, wire.Verdict, max(ends - time.monotonic(), 0.1))
        except TimeoutError as error:
            self.end()
            message = TOO_SLOW.format(self._limits.timeout_s)
            raise GrammarError("grammar_timeout", message) from error
        except (OSError, EOFError, ValueError) as error:
            raise self._cause_of_death() from error
        if verdict.worn:
            self.end()
        if verdict.prepared is None:
            raise GrammarError(verdict.code, verdict.message)
        return verdict.prepared, verdict.held_bytes

    def kill(self) -> None:
        """End the process at once. Whoever waits for its answer gets an error."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process and take its exit status."""
        self._over = True
        self._process.kill()
        self._process.wait()
        self._end.close()

    def _await(self, ends: float) -> None:
        """Return when there is something to read. Raises TimeoutError at the time `ends`."""
        answer = select.poll()  # `select` takes no descriptor from 1024 on
        answer.register(self._end, select.POLLIN)
        wait_s = FREE_S
        while True:
            used = time.process_time()
            if answer.poll(wait_s * 1e3):
                return
            if time.monotonic() >= ends:
                raise TimeoutError
            if time.process_time() - used > BUSY * wait_s:
                self._process.send_signal(signal.SIGSTOP)
                time.sleep(REST_S)
                self._process.send_signal(signal.SIGCONT)
            wait_s = RUN_S

    def _cause_of_death(self) -> GrammarError:
        """In a limited child a signal means memory or stack; an exit status, an engine's bug."""
        self._over = True
        self._end.close()
        try:
            status = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return GrammarError("invalid_grammar", BROKEN)
        if status < 0:
            return GrammarError("grammar_too_large", TOO_LARGE)
        return GrammarError("invalid_grammar", BROKEN)
