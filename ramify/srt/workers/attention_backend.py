"""The kernels that `attention_backend` names: loaded, found to fit the model, and tried out."""

import torch

from ramify.kernels.dispatch import load_ops
from ramify.kernels.ops import Ops
from ramify.kernels.work_list import make_work_list
from ramify.radix_cache.kv_pool import KvPool
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device
from ramify.srt.models.config import ModelConfig
from ramify.srt.tuning.store import measured_tiles

MISSING = {
    "triton": "install ramify[gpu], or take --attention-backend reference, which is slow",
    "flashinfer": "install ramify[gpu,flashinfer] (the package is flashinfer-python), or take "
    "--attention-backend triton",
}


def load_kernels(
    config: EngineConfig, shape: ModelConfig, dtype: torch.dtype, device: Device
) -> Ops:
    """The operations for this device and model. Raises ConfigError if they are not to be had."""
    backend = config.attention_backend
    if config.device == "cuda" and backend == "auto":
        backend = "triton"
    if backend == "flashinfer":
        _check_flashinfer(shape, dtype)
    try:
        if backend == "triton" and config.deterministic:  # other tiles would be other bits
            return load_ops("triton", rows_apart=True)
        tiles_of = measured_tiles(device.name) if backend == "triton" else None
        return load_ops(backend, tiles_of)  # type: ignore[arg-type]  # checked at the edge
    except ModuleNotFoundError as error:
        if backend not in MISSING:
            raise
        raise ConfigError(f"the {backend} kernels need {error.name}: {MISSING[backend]}") from None


def _check_flashinfer(shape: ModelConfig, dtype: torch.dtype) -> None:
    from ramify.kernels.flashinfer.attention import unsupported

    reason = unsupported(dtype, shape.head_dim, shape.n_heads // shape.n_kv_heads)
    if reason is not None:
        raise ConfigError(
            f"attention_backend flashinfer does not fit: {reason}; take --attention-backend triton"
        )


def try_out(ops: Ops, shape: ModelConfig, pool: KvPool) -> None:
    """Let FlashInfer compile its kernels now, not when the first request waits for them.

    Two calls' worth: a prompt of two tokens, which is causal, and a single token, which is not.
    Raises ConfigError if it cannot.
    """
    if ops.backend != "flashinfer":
        return
    keys, values = pool.layers[0]
    q = keys.new_zeros(3, shape.n_heads, shape.head_dim)
    work = make_work_list([(0, 2, 0, 0, 2, -1), (2, 1, 0, 0, 1, -1)], [0, 1, 2], [0, 1, 0], [0])
    try:
        with torch.inference_mode():
            ops.paged_attention(q, keys, values, work, 1.0)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"FlashInfer cannot make its kernels here ({error}): it needs nvcc and ninja, or take "
            "--attention-backend triton"
        ) from error
