"""Keeps one engine process alive: spawn, wait until ready, notice its death, restart, stop.

    start --> spawn --> Ready --> watch --died--> client.lost --> wait --> spawn --> ...
                |                                                  `-- too often: give up
                '-- exit 3: ModelLoadError with the engine's words

The process runs in its own session, so Ctrl-C reaches the parent only; its standard input stays
open as long as the parent lives, and it ends when that closes.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ModelLoadError, Unavailable
from ramify.srt.messages import ModelInfo
from ramify.srt.transport import engine_address, private_folder
from ramify.srt.workers.client import EngineClient
from ramify.srt.workers.engine_process import EXIT_UNUSABLE, LOADER, Job

QUICK_DEATH_S = 10.0  # a life shorter than this, from the spawn, counts towards giving up
MAX_QUICK_DEATHS = 5
FIRST_DELAY_S = 0.1  # before a restart; doubles with every quick death
MAX_DELAY_S = 5.0
STOP_S = 10.0  # from SIGTERM to SIGKILL
MAX_WORDS_BYTES = 16_384

logger = logging.getLogger(__name__)


class EngineSupervisor:
    """Owns the engine process, its socket folder, and the `client` that talks to it.

    `core` replaces the model by another MODULE:FUNCTION (see `Job`). All methods belong to one
    asyncio loop. `failure` says why the engine was given up, or is None.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        core: str = LOADER,
        log_level: str = "info",
        clock: Clock | None = None,
    ) -> None:
        self._folder = private_folder()
        address = engine_address(self._folder)
        self._job = msgspec.json.encode(Job(config, address, core, log_level)) + b"\n"
        self._silence_s = config.watchdog_timeout_s
        self._clock = clock or MonotonicClock()
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._spawned_s = 0.0
        self._stopping = False
        self.client = EngineClient(address, self._clock)
        self.ready_s: float | None = None  # from spawn to Ready, of the latest start
        self.restarts = 0
        self.failure: str | None = None
        self.gave_up = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None before it was first spawned."""
        return self._process.pid if self._process else None

    @property
    def rss_bytes(self) -> int | None:
        """Resident memory of the engine; None when it does not run or the machine cannot tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def start(self) -> ModelInfo:
        """Spawn the engine and wait until it is ready, then keep it alive.

        Raises ModelLoadError in the engine's words when it cannot load, or dies loading.
        """
        try:
            info = await self._spawn()
        except (ModelLoadError, OSError, asyncio.CancelledError):
            await self.stop(0.0)
            raise
        self._watcher = asyncio.create_task(self._watch())
        return info

    async def stop(self, drain_timeout_s: float) -> bool:
        """Finish the open requests, end the process, remove the folder. False when some were cut.

        Requests that are open after `drain_timeout_s` are aborted by the engine.
        """
        self._stopping = True
        drained = await self.client.drain(drain_timeout_s)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._end_process()
        self.client.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return drained

    async def _spawn(self) -> ModelInfo:
        """Start a process and wait for its Ready. Raises ModelLoadError when it dies before."""
        self._spawned_s = self._clock.now()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "ramify.srt.workers.engine_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._job)
        ready = asyncio.create_task(self.client.start())
        died = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait((ready, died), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise ModelLoadError(await self._last_words())
        finally:
            await _cancel(ready, died)
        self.ready_s = self._clock.now() - self._spawned_s
        logger.info("engine %d is ready after %.1f s", self._process.pid, self.ready_s)
        return ready.result()

    async def _last_words(self) -> str:
        """Why the process that has just ended could not serve."""
        assert self._process is not None
        assert self._process.stdout is not None
        words = (await self._process.stdout.read(MAX_WORDS_BYTES)).decode(errors="replace")
        if self._process.returncode == EXIT_UNUSABLE and words:
            return words
        return f"the engine process {_ending(self._process.returncode)} while loading the model"

    async def _watch(self) -> None:
        """Restart the process whenever it dies, until it dies too often too young."""
        quick_deaths = 0
        while not self._stopping:
            assert self._process is not None
            watchdog = asyncio.create_task(self._kill_when_silent(self._process))
            try:
                ending = _ending(await self._process.wait())
            finally:
                await _cancel(watchdog)
            self.client.lost(f"the engine {ending} and is being restarted; send the request again")
            young = self._clock.now() - self._spawned_s < QUICK_DEATH_S
            quick_deaths = quick_deaths + 1 if young else 0
            logger.error("engine %d %s", self._process.pid, ending)
            if quick_deaths >= MAX_QUICK_DEATHS:
                return self._give_up(f"the engine {ending}; {quick_deaths} times in a row it died")
            await asyncio.sleep(min(FIRST_DELAY_S * 2**quick_deaths, MAX_DELAY_S))
            self.restarts += 1
            # It may die before it is ready: the next turn counts that.
            with contextlib.suppress(ModelLoadError, OSError):
                await self._spawn()
        return None

    async def _kill_when_silent(self, process: asyncio.subprocess.Process) -> None:
        """A process that hangs is worse than one that has died: make it one."""
        while self._silence_s > 0:
            await asyncio.sleep(self._silence_s / 4)
            try:
                async with asyncio.timeout(self._silence_s):
                    await self.client.inspect(check=False)
            except Unavailable:
                continue  # it is lost already, or starting
            except TimeoutError:
                logger.error("engine %d is silent: killing it", process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    def _give_up(self, why: str) -> None:
        self.failure = why
        logger.critical("%s: giving up", why)
        self.client.close()
        self.gave_up.set()

    async def _end_process(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            logger.warning("engine %d did not end within %.0f s: killing it", process.pid, STOP_S)
            process.kill()
            await process.wait()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "is running"
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
