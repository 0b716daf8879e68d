"""How many pages the KV pool gets: arithmetic on the options and the model's shapes."""

import torch

from ramify.radix_cache.kv_pool import bytes_per_page
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.models.config import ModelConfig

GIB = 1 << 30


def pool_pages(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Pages of the pool: `max_total_tokens` if given, else what fits `kv_cache_gb`.

    Raises ConfigError when not even two pages fit.
    """
    page_bytes = bytes_per_page(
        model.n_layers, model.n_kv_heads, config.page_size, model.head_dim, dtype
    )
    if config.max_total_tokens is not None:
        return config.max_total_tokens // config.page_size
    pages = int(config.kv_cache_gb * GIB) // page_bytes
    if pages < 2:
        raise ConfigError(
            f"kv_cache_gb must be at least {2 * page_bytes / GIB:.3f} for this model: "
            f"one page of {config.page_size} tokens takes {page_bytes} bytes"
        )
    return pages
