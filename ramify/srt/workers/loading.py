"""How an engine gets its core. `engine_process.LOADER` names `load`, so that only the process that
loads the model imports torch."""

import logging

from ramify.srt.clock import MonotonicClock
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.weights.source import ModelFolder, prepare
from ramify.srt.workers import trace
from ramify.srt.workers.building import build_core
from ramify.srt.workers.engine_loop import Core
from ramify.srt.workers.recorder import ReadClock, TraceRecorder

logger = logging.getLogger(__name__)


def load(config: EngineConfig) -> Core:
    """The core for `config`, model loaded. Raises ConfigError or ModelLoadError."""
    check_engine(config)
    return load_prepared(config, prepare(config.model))


def load_prepared(config: EngineConfig, folder: ModelFolder) -> Core:
    """The core for a checked `config`, which is recorded if it says so."""
    if config.record_trace is None:
        return build_core(config, folder)
    return _recorded(config, folder, config.record_trace)


def _recorded(config: EngineConfig, folder: ModelFolder, path: str) -> Core:
    clock = ReadClock(MonotonicClock())
    core = build_core(config, folder, clock)
    tiers = core.scheduler.cache.tiers
    header = trace.Header(
        version=trace.VERSION,
        config=config,
        info=core.info,
        limits=core.scheduler.limits,
        host_slots=tiers.n_slots if tiers is not None else 0,
    )
    file = trace.TraceFile(path, header)
    logger.info("recording to %s", file.path)
    return TraceRecorder(core, clock, file.write)
