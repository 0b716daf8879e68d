"""The memory that pages stand for: keys and values of every layer."""

import mmap
from math import prod

import torch
from torch import Tensor

from ramify.radix_cache.plans import PageCopy

CPU = torch.device("cpu")


class KvPool:
    """Keys and values, each [layers, pages, kv heads, P, head_dim] in one number type.

    The memory is zero at first. On a CPU it is untouched, so a large pool costs only what is used
    of it; elsewhere all of it is taken at once.
    """

    def __init__(
        self,
        n_layers: int,
        n_pages: int,
        n_kv_heads: int,
        page_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        shape = (n_layers, n_pages, n_kv_heads, page_size, head_dim)
        self.page_size = page_size
        self.n_pages = n_pages
        self.keys, self.values = (_zeros(shape, dtype, device) for _ in ("keys", "values"))
        self.layers: list[tuple[Tensor, Tensor]] = list(zip(self.keys, self.values, strict=True))

    def copy(self, copies: tuple[PageCopy, ...]) -> None:
        """Carry out copy-on-write plans, in every layer."""
        for plan in copies:
            for pool in (self.keys, self.values):
                pool[:, plan.target, :, : plan.n_slots] = pool[:, plan.source, :, : plan.n_slots]


def bytes_per_page(
    n_layers: int, n_kv_heads: int, page_size: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Memory of one page: keys and values of all layers."""
    return 2 * n_layers * n_kv_heads * page_size * head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return untouched(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that the system hands out page by page; torch.zeros would write them all at once.

    By small pages: a request that comes to a new page of the cache touches every layer's part of
    the pool, and sixty huge pages zeroed at once made one step in a hundred last 0.2 s longer.
    """
    raw = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        raw.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(raw, dtype=dtype).view(shape)
