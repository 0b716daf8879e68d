"""How the engine process gets its core. Named by `engine_process.LOADER`, so that only the process
that loads the model imports torch."""

from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.weights.source import prepare
from ramify.srt.workers.engine_core import EngineCore


def load(config: EngineConfig) -> EngineCore:
    """The core for `config`, model loaded. Raises ConfigError or ModelLoadError."""
    check_engine(config)
    return EngineCore.load(config, prepare(config.model))
