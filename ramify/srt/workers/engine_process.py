"""The engine process: load the model, then serve the loop. Started by `launch`, never by hand.

stdin   one line, the job as JSON; then held open by the parent: its end means the parent died
stdout  one line, why the model cannot be used; nothing else is ever written there
stderr  the log
exit    0 told to stop, 1 a bug (traceback in the log), 3 the model or an option is unusable
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from ramify.srt.clock import MonotonicClock
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError, ModelLoadError
from ramify.srt.transport import EngineSocket
from ramify.srt.workers import engine_loop

LOADER = "ramify.srt.workers.loading:load"  # by name: `launch` imports this file without torch
EXIT_UNUSABLE = 3
GRACE_S = 5.0  # how long the loop has to end its step after the parent died

logger = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parent asks for. `core` is MODULE:FUNCTION, called with the config."""

    config: EngineConfig
    address: str
    core: str = LOADER
    log_level: str = "info"


def main() -> int:
    """Serve one job. Returns the exit status."""
    words = _take_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    _set_up_log(job.log_level)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    socket = EngineSocket(job.address)  # before loading: a Hello may come early and wait
    try:
        core = _loader(job.core)(job.config)  # SIGTERM ends this at once: nothing is open yet
        gc.freeze()  # what is loaded stays: full collections need not look at it
        signal.signal(signal.SIGTERM, lambda *_: stop.set())  # from here on after the step
        engine_loop.run(core, socket, MonotonicClock(), stop.is_set)
    except (ConfigError, ModelLoadError) as error:
        os.write(words, str(error).encode())
        return EXIT_UNUSABLE
    except Exception:
        logger.exception("the engine failed")
        return 1
    finally:
        socket.close()
    return 0


def _take_stdout() -> int:
    """The pipe to the parent. Whatever a library prints goes to the log instead."""
    words = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return words


def _loader(name: str) -> Callable[[EngineConfig], engine_loop.Core]:
    module, function = name.split(":")
    loader: Callable[[EngineConfig], engine_loop.Core] = getattr(
        importlib.import_module(module), function
    )
    return loader


def _set_up_log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s engine %(name)s: %(message)s"
    )


def _watch_parent(stop: threading.Event) -> None:
    """Stop when the parent dies: no engine is left behind that holds memory and serves nobody."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
