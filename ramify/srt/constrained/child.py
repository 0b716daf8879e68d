"""The process that tries grammars first, so that a hostile one can hang or break only this.

stdin   the socket of child_wire.py; its end means that the parent died
stderr  the log
exit    0 nobody needs it any more, 1 a bug (traceback in the log); any signal: what it deserved

    at its start    |---- code, vocabulary, tables ----|
    may grow to     |---- code, vocabulary, tables ----|-------- memory_bytes --------|
    worn beyond     |---- code, vocabulary, tables ----|---- three quarters ---|
"""

import ctypes
import logging
import os
import resource
import signal
import socket
import sys

import msgspec

from ramify.srt.constrained import child_wire as wire
from ramify.srt.constrained.base import GrammarBackend, GrammarError
from ramify.srt.constrained.guard import rehearse
from ramify.srt.constrained.memory_in_use import address_space, bytes_in_use
from ramify.srt.grammar import GrammarSpec

GRACE_S = 1.0  # for the parent to kill first: it knows why
PR_SET_PDEATHSIG = 1
TOO_LARGE = "grammar_too_large", "the grammar needs more memory or depth than one may have"

logger = logging.getLogger(__name__)


def main() -> int:
    """Serve one parent until it is gone. Returns the exit status."""
    end = _take_stdin()
    opening = wire.receive(end, wire.Open)
    os.nice(opening.nice)
    _end_with_parent()
    backend = opening.source.open()
    worn_bytes = _limit_memory(opening.memory_bytes)
    wire.send(end, wire.Opened())
    while True:
        try:
            job = wire.receive(end, wire.Compile)
        except EOFError:
            return 0
        # The signal's default action ends the process even inside an engine that never returns.
        signal.setitimer(signal.ITIMER_REAL, job.timeout_s + GRACE_S)
        verdict = judge(backend, job.spec, opening.grammar_bytes)
        signal.setitimer(signal.ITIMER_REAL, 0)
        worn = address_space() > worn_bytes
        wire.send(end, msgspec.structs.replace(verdict, worn=worn))


def judge(backend: GrammarBackend, spec: GrammarSpec, most_bytes: int) -> wire.Verdict:
    """Compile a grammar and rehearse its first tokens: what came of it, and how much memory it
    holds."""
    try:
        prepared = backend.prepare(spec)
        before = bytes_in_use()
        grammar = backend.build(prepared)
        held = max(bytes_in_use() - before, grammar.nbytes)
        rehearse(grammar)
    except GrammarError as error:
        return _refused(error.code, error.message)
    except (MemoryError, RecursionError):
        return _refused(*TOO_LARGE)
    except Exception:
        logger.exception("an engine failed on a grammar")
        return _refused("invalid_grammar", "the grammar cannot be compiled")
    if held > most_bytes:
        return _refused(*TOO_LARGE)
    return wire.Verdict(prepared, held_bytes=held)


def _refused(code: str, message: str) -> wire.Verdict:
    return wire.Verdict(None, code, message[: wire.MAX_MESSAGE])


def _take_stdin() -> socket.socket:
    """The parent's socket. What a library reads or prints cannot touch it."""
    end = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return end


def _end_with_parent() -> None:
    """Where the system can: a child that is made to rest cannot see that its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(more_bytes: int) -> int:
    """Let the address space grow by `more_bytes` and no further. Returns when it is worn."""
    now = address_space()
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, now + more_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return now + more_bytes * 3 // 4


if __name__ == "__main__":
    sys.exit(main())
