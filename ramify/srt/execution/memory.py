"""How many pages the KV pool and the tiers below it get: arithmetic on options and shapes."""

import torch

from ramify.radix_cache.kv_pool import bytes_per_page
from ramify.radix_cache.page_files import file_bytes
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.models.config import ModelConfig

GIB = 1 << 30
STAGING_BYTES = 64 << 20  # host memory through which pages go to and from disk, where that is all,
STAGING_PAGES = 32  # and the least of it


def pool_pages(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages of the pool: `max_total_tokens` if given, else what fits `kv_cache_gb`.

    Raises ConfigError when not even two pages fit.
    """
    if config.max_total_tokens is not None:
        return config.max_total_tokens // config.page_size
    page_bytes = _page_bytes(config, model, dtype)
    return _fitting("kv_cache_gb", config.kv_cache_gb, page_bytes, 2, config.page_size)


def host_slots(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages that host memory holds: what fits `host_cache_gb`, or a staging area for the disk.

    Zero without both tiers. Raises ConfigError when a budget is given and no page fits.
    """
    page_bytes = _page_bytes(config, model, dtype)
    if config.host_cache_gb:
        return _fitting("host_cache_gb", config.host_cache_gb, page_bytes, 1, config.page_size)
    return max(STAGING_PAGES, STAGING_BYTES // page_bytes) if config.disk_cache_gb else 0


def disk_pages(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Page files that fit `disk_cache_gb`; zero without a disk tier.

    Raises ConfigError when a budget is given and no page fits.
    """
    if not config.disk_cache_gb:
        return 0
    size = file_bytes(_page_bytes(config, model, dtype), config.page_size)
    return _fitting("disk_cache_gb", config.disk_cache_gb, size, 1, config.page_size)


def _page_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
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
