"""FlashInfer's attention on the same pools and lengths as ours, by its public wrappers."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import torch
from gpu_attention import Bench, separate_tables
from gpu_goals import FLASHINFER
from gpu_lines import Case, Figure
from gpu_shapes import (
    BATCHES,
    CONTEXTS,
    PAGE,
    PREFILLS,
    attention_name,
    attention_prefill_name,
    theirs,
)
from gpu_timing import call_us
from torch import Tensor

WORKSPACE = 256 << 20  # bytes
LAYOUT = "HND"  # of pools: pages, heads, slots, numbers; ours


def cases(b: Bench, flashinfer: ModuleType) -> Iterator[Case]:
    for batch, context in product(BATCHES, CONTEXTS):
        name = theirs(attention_name(b.name, batch, context), FLASHINFER)
        yield Case(name, partial(decode, b, flashinfer, name, batch, context))
    for n in PREFILLS:
        name = theirs(attention_prefill_name(b.name, n), FLASHINFER)
        yield Case(name, partial(prefill, b, flashinfer, name, n))


def decode(
    b: Bench, flashinfer: ModuleType, name: str, batch: int, context: int
) -> Iterator[Figure]:
    batch, context = b.rows(batch), max(context // b.scale, 2)
    s = b.shape
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace(b), kv_layout=LAYOUT, use_tensor_cores=s.heads // s.kv_heads >= 4
    )
    wrapper.plan(
        *table_of(b, batch, context),
        s.heads,
        s.kv_heads,
        s.head_dim,
        PAGE,
        q_data_type=b.dtype,
        kv_data_type=b.dtype,
        sm_scale=1 / math.sqrt(s.head_dim),
    )
    q = b.random(batch, s.heads, s.head_dim)
    yield Figure(name, *timed(b, wrapper, q, batch * -(-context // PAGE)))


def prefill(b: Bench, flashinfer: ModuleType, name: str, n: int) -> Iterator[Figure]:
    n, s = b.rows(n), b.shape
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace(b), kv_layout=LAYOUT)
    wrapper.plan(
        torch.tensor([0, n], dtype=torch.int32, device=b.device.torch_device),
        *table_of(b, 1, n),
        s.heads,
        s.kv_heads,
        s.head_dim,
        PAGE,
        causal=True,
        sm_scale=1 / math.sqrt(s.head_dim),
        q_data_type=b.dtype,
        kv_data_type=b.dtype,
    )
    us, unit = timed(b, wrapper, b.random(n, s.heads, s.head_dim), -(-n // PAGE))
    yield Figure(name, us, unit)
    yield Figure(f"{name}, rate", 2 * s.heads * s.head_dim * n * n / us / 1e6, "TFLOP/s")


def workspace(b: Bench) -> Tensor:
    return torch.zeros(WORKSPACE // b.scale, dtype=torch.uint8, device=b.device.torch_device)


def table_of(b: Bench, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sequence's pages begin, the pages, and how much of the last one is in use."""
    tables, where = separate_tables(batch, length), b.device.torch_device
    per_row = len(tables[0])
    ints = partial(torch.tensor, dtype=torch.int32, device=where)
    indptr = ints([i * per_row for i in range(batch + 1)])
    last = (length - 1) % PAGE + 1
    return indptr, ints([p for table in tables for p in table]), ints([last] * batch)


def timed(b: Bench, wrapper: Any, q: Tensor, n_pages: int) -> tuple[float, str]:
    return call_us(b.device, [partial(wrapper.run, q, (k, v)) for k, v in b.pools(n_pages)])
