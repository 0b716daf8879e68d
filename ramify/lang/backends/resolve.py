"""From what a user calls a backend to a Backend."""

from typing import Any

from ramify.lang.backends.base import Backend, EngineLike
from ramify.lang.backends.local import EngineBackend
from ramify.lang.global_config import global_config


def as_backend(given: Any) -> Backend:
    """A Backend out of a Backend, an engine, or an object whose `endpoint` is one.

    Raises TypeError for anything else.
    """
    given = getattr(given, "endpoint", given)
    if hasattr(given, "score"):
        backend: Backend = given
        return backend
    if hasattr(given, "generate") and hasattr(given, "model_info"):
        engine: EngineLike = given
        return EngineBackend(engine)
    raise TypeError(
        f"a backend is an engine or has the methods of a Backend, got {type(given).__name__}"
    )


def backend_or_default(given: Any = None) -> Backend:
    """The backend given, else the default one. Raises RuntimeError when there is none."""
    chosen = global_config.default_backend if given is None else given
    if chosen is None:
        raise RuntimeError("no backend: call set_default_backend(...) or pass backend=...")
    return as_backend(chosen)


def set_default_backend(backend: Any) -> None:
    """Use a backend or an engine wherever a program names none."""
    global_config.default_backend = None if backend is None else as_backend(backend)


def flush_cache(backend: Any = None) -> bool:
    """Forget everything the backend has cached. False when there is no backend or it is busy."""
    if backend is None and global_config.default_backend is None:
        return False
    return backend_or_default(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """What the backend tells about itself. None when there is no backend."""
    if backend is None and global_config.default_backend is None:
        return None
    return backend_or_default(backend).server_info()
