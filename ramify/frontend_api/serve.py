"""`ramify serve`: one engine process, one HTTP server in front of it, from start to drain.

    bind the port --> engine loads (another process) | tokenizer, app --> listen --> SIGTERM
    --> refuse new connections, finish what runs --> stop the engine --> exit 0

The port is taken first, so that a second server on it fails at once and not after loading.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

import ramify
from ramify.frontend_api.keys import Keys, load_keys
from ramify.frontend_api.options import take
from ramify.srt.config import EngineConfig, ServeConfig, check_engine
from ramify.srt.errors import ConfigError, RamifyError
from ramify.srt.intake import seed_source
from ramify.srt.launch import EngineSupervisor
from ramify.srt.tokenization.tokenizer import Tokenizer
from ramify.srt.weights.source import ModelFolder, prepare
from ramify.srt.workers.engine_process import LOADER

MIB = 2**20
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger("ramify.serve")


def run(parsed: argparse.Namespace) -> int:
    """The subcommand. Returns the exit code."""
    warm_up = getattr(parsed, "grammar_warm_up", True)  # to load it later would hold up others
    engine = take(EngineConfig, parsed, grammar_warm_up=warm_up)
    server = take(ServeConfig, parsed)
    check_engine(engine)
    check_server(server)
    set_up_log(server.log_level)
    keys = load_keys(server, os.environ)
    if server.host not in LOCAL_HOSTS and keys is None:
        text = "%s is open to the network, and requests need no key: see --api-keys-file"
        log.warning(text, server.host)
    with bound(server) as sock:
        return run_loop(Server(engine, server, prepare(engine.model), sock, keys=keys))


def check_server(config: ServeConfig) -> None:
    """Raises ConfigError naming the option that cannot work."""
    if not 0 <= config.port < 2**16:
        raise ConfigError(f"port must be from 0 to 65535, got {config.port}")
    if config.max_batch < 1:
        raise ConfigError(f"max_batch must be at least 1, got {config.max_batch}")
    if not 0 < config.max_body_mb <= 2**20:
        raise ConfigError(f"max_body_mb must be more than 0, got {config.max_body_mb}")
    if not 0 <= config.drain_timeout_s < 1e6:
        raise ConfigError(f"drain_timeout_s must be at least 0, got {config.drain_timeout_s}")


def set_up_log(level: str) -> None:
    """Everything goes to standard error: standard output is for what was asked for."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


@contextlib.contextmanager
def bound(config: ServeConfig) -> Iterator[socket.socket]:
    """The server's socket, bound and not yet listening. Raises RamifyError when it is taken."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((config.host, config.port))
        except OSError as error:
            where = f"{config.host} port {config.port}"
            raise RamifyError(
                f"cannot listen on {where}: {os.strerror(error.errno or 0)}"
            ) from None
        yield sock


def run_loop(server: "Server") -> int:
    """Run to the end on the fastest loop there is. Returns the exit code."""
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(server.run())


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal and not with 0."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


class Server:
    """One run of the server. `core` replaces the model, as in `EngineSupervisor`."""

    def __init__(
        self,
        engine: EngineConfig,
        server: ServeConfig,
        folder: ModelFolder,
        sock: socket.socket,
        core: str = LOADER,
        keys: Keys | None = None,
    ) -> None:
        self._started_s = time.monotonic()
        self._engine, self._server, self._folder, self._sock = engine, server, folder, sock
        self._keys = keys
        self._name = server.served_model_name or folder.name
        self._supervisor = EngineSupervisor(engine, core=core, log_level=server.log_level)
        self._told_to_stop = asyncio.Event()
        self._http: _Http | None = None

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit code; raises ModelLoadError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            ready = await self._unless_stopped(self._make_ready())
            if ready:
                await self._serve()
        finally:
            await self._supervisor.stop(0.0)
        if self._supervisor.failure is None:
            return 0
        print(f"ramify: {self._supervisor.failure}", file=sys.stderr)
        return 1

    def _stop(self) -> None:
        """Once: finish what runs. Twice: at once."""
        if self._http is not None:
            self._http.force_exit = self._told_to_stop.is_set()
            self._http.should_exit = True
        self._told_to_stop.set()

    async def _unless_stopped(self, work: Any) -> bool:
        """True when `work` is done, False when we were told to stop before."""
        working = asyncio.create_task(work)
        stopped = asyncio.create_task(self._told_to_stop.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.wait({working, stopped})

    async def _make_ready(self) -> None:
        """Load the engine in its process, and here meanwhile the tokenizer and the application."""
        starting = asyncio.create_task(self._supervisor.start())
        try:
            app = await asyncio.to_thread(self._make_app)
            await starting
        finally:
            starting.cancel()
            await asyncio.wait({starting})
        self._http = _Http(self._http_config(app), self._announce)

    def _make_app(self) -> Any:
        from ramify.frontend_api.app import create_app
        from ramify.frontend_api.service import Service

        folder = self._folder
        return create_app(
            Service(
                client=self._supervisor.client,
                tokenizer=Tokenizer.load(folder.path) if folder.has_tokenizer else None,
                model_name=self._name,
                model_path=str(folder.path),
                engine_config=self._engine,
                serve_config=self._server,
                new_seed=seed_source(self._engine.seed),
                created_s=int(time.time()),
                keys=self._keys,
            )
        )

    def _http_config(self, app: Any) -> uvicorn.Config:
        from ramify.frontend_api.limits import BoundedProtocol

        return uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=self._server.log_level in ("debug", "info"),
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=round(self._server.drain_timeout_s),
        )

    async def _serve(self) -> None:
        assert self._http is not None
        giving_up = asyncio.create_task(self._stop_when_given_up())
        try:
            await self._http.serve(sockets=[self._sock])
        finally:
            giving_up.cancel()

    async def _stop_when_given_up(self) -> None:
        await self._supervisor.gave_up.wait()
        self._stop()

    def _announce(self) -> None:
        info, supervisor = self._supervisor.client.info, self._supervisor
        assert info is not None
        host, port = self._sock.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        engine, frontend = (supervisor.rss_bytes or 0) / MIB, own_rss_bytes() / MIB
        lines = (
            f"ramify {ramify.__version__} serves {self._name} "
            f"({info.architecture}, {info.dtype}, {info.device})",
            f"  url       http://{host}:{port}/v1",
            f"  ready in  {time.monotonic() - self._started_s:.1f} s",
            f"  memory    engine {engine:,.0f} MiB, frontend {frontend:,.0f} MiB",
            f"  KV cache  {info.kv_pool_tokens:,} tokens; context {info.context_length:,}",
        )
        print("\n".join(lines), flush=True)


def own_rss_bytes() -> int:
    """Resident memory of this process; 0 where the machine cannot tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
