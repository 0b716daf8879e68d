"""How many pages the KV pool and the tiers below it get: arithmetic on options and shapes."""

import torch

from ramify.radix_cache.kv_pool import bytes_per_page
from ramify.radix_cache.page_files import file_bytes
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.models.config import ModelConfig

GIB = 1 << 30
SPARE_PAGES = 1  # of a pool on a GPU: for rows that fill up a step (see `gpu_decode`)
STAGING_BYTES = 64 << 20  # host memory through which pages go to and from disk, where that is all,
STAGING_PAGES = 32  # and the least of it


def pool_pages(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    gpu: tuple[int, int] | None = None,
) -> int:
    """Pages of the pool: `max_total_tokens` if given, else what fits `kv_cache_gb`, or else a GPU.

    `gpu` are the free and all bytes of its memory, with the model loaded. Raises ConfigError when
    not even two pages fit, or a GPU cannot hold what the options ask for.
    """
    page_bytes = page_bytes_of(config, model, dtype)
    pages = _wanted_pages(config, page_bytes, gpu)
    if gpu is not None and (pages + SPARE_PAGES) * page_bytes > gpu[0]:
        raise ConfigError(
            f"the KV cache takes {(pages + SPARE_PAGES) * page_bytes / GIB:.2f} GiB, and with the "
            f"model loaded {gpu[0] / GIB:.2f} of the GPU's {gpu[1] / GIB:.2f} GiB are free: give "
            "it less with kv_cache_gb or max_total_tokens"
        )
    return pages


def _wanted_pages(config: EngineConfig, page_bytes: int, gpu: tuple[int, int] | None) -> int:
    if config.max_total_tokens is not None:
        return config.max_total_tokens // config.page_size
    if config.kv_cache_gb is None:
        assert gpu is not None, "on a CPU the size has a default"
        return _fraction_pages(config, page_bytes, *gpu)
    return _fitting("kv_cache_gb", config.kv_cache_gb, page_bytes, 2, config.page_size)


def _fraction_pages(config: EngineConfig, page_bytes: int, free: int, total: int) -> int:
    """Pages in what is left of a share of a GPU's memory, the rest of it being free too."""
    room = int(free - (1 - config.mem_fraction_static) * total)
    pages = room // page_bytes - SPARE_PAGES
    if pages < 2:
        raise ConfigError(
            f"mem_fraction_static {config.mem_fraction_static:g} leaves no room for a KV cache: of "
            f"the GPU's {total / GIB:.2f} GiB {free / GIB:.2f} are free with the model loaded, and "
            f"{(1 - config.mem_fraction_static) * total / GIB:.2f} are to stay free; raise it, "
            "free memory that other programs hold, or take a smaller model"
        )
    return pages


def host_slots(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages that host memory holds: what fits `host_cache_gb`, or a staging area for the disk.

    Zero without both tiers. Raises ConfigError when a budget is given and no page fits.
    """
    page_bytes = page_bytes_of(config, model, dtype)
    if config.host_cache_gb:
        return _fitting("host_cache_gb", config.host_cache_gb, page_bytes, 1, config.page_size)
    return max(STAGING_PAGES, STAGING_BYTES // page_bytes) if config.disk_cache_gb else 0


def disk_pages(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Page files that fit `disk_cache_gb`; zero without a disk tier.

    Raises ConfigError when a budget is given and no page fits.
    """
    if not config.disk_cache_gb:
        return 0
    size = file_bytes(page_bytes_of(config, model, dtype), config.page_size)
    return _fitting("disk_cache_gb", config.disk_cache_gb, size, 1, config.page_size)


def page_bytes_of(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of one page of this model: keys and values of all layers."""
    return bytes_per_page(model.n_layers, model.n_kv_heads, config.page_size, model.head_dim, dtype)


def _fitting(option: str, gib: float, page_bytes: int, least: int, page_size: int) -> int:
    """How many pages fit a budget. Raises ConfigError when fewer than `least` do."""
    pages = int(gib * GIB) // page_bytes
    if pages < least:
        raise ConfigError(
            f"{option} must be at least {least * page_bytes / GIB:.3f} for this model: "
            f"one page of {page_size} tokens takes {page_bytes} bytes"
        )
    return pages
