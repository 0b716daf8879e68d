"""Attention, by itself: the work lists that the engine makes, on pools of random numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from gpu_lines import Case, Figure
from gpu_shapes import (
    BANDWIDTH,
    BATCHES,
    CONTEXTS,
    FLOPS,
    LARGE,
    PAGE,
    PREFILLS,
    SMALL,
    TRUNK,
    TRUNK_ROWS,
    Shape,
    attention_name,
    attention_prefill_name,
    trunk_name,
)
from gpu_timing import call_us, copies_of
from torch import Tensor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.shapes import FP8
from ramify.kernels.work_list import WorkList, make_work_list
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.execution.device import Device
from ramify.srt.execution.graph_buckets import (
    ITEM_WORDS,
    DecodeRow,
    Tables,
    decode_block,
    layout,
)

OWN = 64  # tokens of a request behind the trunk
FP8_BATCH, FP8_CONTEXT = 32, 4096


@dataclass(frozen=True)
class Bench:
    """Where and on what attention is measured. `scale` divides all lengths, for a CPU."""

    device: Device
    backend: str
    name: str
    shape: Shape
    scale: int = 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.is_cuda else torch.float32

    def random(self, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(*sizes, device=self.device.torch_device, dtype=self.dtype)
        return x if dtype is None else x.to(dtype)

    def rows(self, n: int) -> int:
        return max(n // self.scale, 1)

    def pools(self, n_pages: int, dtype: torch.dtype | None = None) -> list[list[Tensor]]:
        """Key and value pools; several, so that reading them in turn reads memory, not cache."""
        sizes = n_pages, self.shape.kv_heads, PAGE, self.shape.head_dim
        stored = dtype or self.dtype
        n = copies_of(self.device, 2 * torch.Size(sizes).numel() * stored.itemsize)
        return [[self.random(*sizes, dtype=dtype) for _ in "kv"] for _ in range(n)]


def cases(benches: Sequence[Bench]) -> Iterator[Case]:
    """Of every shape: decoding at all sizes, prompts, fp8 pools, a trunk."""
    for b in benches:
        for batch, context in product(BATCHES, CONTEXTS):
            name = attention_name(b.name, batch, context)
            yield Case(name, lambda b=b, n=name, x=batch, c=context: decode(b, n, x, c))
        for n in PREFILLS:
            name = attention_prefill_name(b.name, n)
            yield Case(name, lambda b=b, name=name, n=n: prefill(b, name, n))
        name = f"{attention_name(b.name, FP8_BATCH, FP8_CONTEXT)}, fp8 pool"
        yield Case(name, lambda b=b, n=name: decode(b, n, FP8_BATCH, FP8_CONTEXT, stored=FP8))
        for how in TRUNKS:
            yield Case(trunk_name(b.name, how), lambda b=b, how=how: trunk(b, how))


def both_shapes(device: Device, backend: str, shapes: dict[str, Shape], scale: int = 1):
    return [Bench(device, backend, name, shapes[name], scale) for name in (LARGE, SMALL)]


def separate_tables(batch: int, context: int) -> list[tuple[int, ...]]:
    """Page tables that share nothing."""
    n = -(-context // PAGE)
    return [tuple(range(i * n, (i + 1) * n)) for i in range(batch)]


def trunk_tables(batch: int, trunk: int, own: int) -> list[tuple[int, ...]]:
    """Page tables that begin with the same pages."""
    first = tuple(range(trunk // PAGE))
    return [first + tuple(len(first) + p for p in table) for table in separate_tables(batch, own)]


def decode(
    b: Bench, name: str, batch: int, context: int, stored: torch.dtype | None = None
) -> Iterator[Figure]:
    """A step of one row per request."""
    batch, context = b.rows(batch), max(context // b.scale, 2)
    tables = separate_tables(batch, context)
    us, unit = measure(b, decode_work(b, tables, context), tables, stored)
    size = (stored or torch.bfloat16).itemsize
    floor = batch * context * 2 * b.shape.kv_heads * b.shape.head_dim * size / BANDWIDTH * 1e6
    yield Figure(name, us, unit, floor / us)


def prefill(b: Bench, name: str, n: int) -> Iterator[Figure]:
    """One prompt, in one step."""
    n = b.rows(n)
    tables = separate_tables(1, n)
    us, unit = measure(b, planned(b, tables, n, n), tables)
    operations = 2 * b.shape.heads * b.shape.head_dim * n * n
    yield Figure(name, us, unit, operations / FLOPS * 1e6 / us)
    yield Figure(f"{name}, rate", operations / us / 1e6, "TFLOP/s")


TRUNKS = {
    "shared": "every key of the trunk read once: what the engine does",
    "plain list": "the same pages, an item for each request",
    "own pages": "each request with a trunk of its own: what is without a prefix cache",
}


def trunk(b: Bench, how: str) -> Iterator[Figure]:
    """Decode of requests over a long trunk; the floor is that of reading what this list reads."""
    tables, work, keys = trunk_step(b, how)
    us, unit = measure(b, work, tables)
    floor = keys * 2 * b.shape.kv_heads * b.shape.head_dim * 2 / BANDWIDTH * 1e6
    yield Figure(trunk_name(b.name, how), us, unit, floor / us)


def trunk_step(b: Bench, how: str) -> tuple[list[tuple[int, ...]], WorkList, int]:
    """(page tables, work list, keys that it reads)"""
    batch, length = b.rows(TRUNK_ROWS), max(TRUNK // b.scale // PAGE, 2) * PAGE
    if how == "own pages":
        tables = separate_tables(batch, length + OWN)
        return tables, decode_work(b, tables, length + OWN), batch * (length + OWN)
    tables = trunk_tables(batch, length, OWN)
    if how == "plain list":
        plain = planned(b, tables, length + OWN, 1, share=False)
        return tables, plain, batch * (length + OWN)
    return tables, decode_work(b, tables, length + OWN), length + batch * OWN


def measure(
    b: Bench, work: WorkList, tables: Sequence[tuple[int, ...]], stored: torch.dtype | None = None
) -> tuple[float, str]:
    ops, shape = load_ops(b.backend), b.shape
    n_pages = max(max(table) for table in tables) + 2
    q = b.random(len(work.positions), shape.heads, shape.head_dim)
    options = PLAIN if stored is None else AttentionOptions(k_scale=0.5, v_scale=0.5)
    scale = shape.head_dim**-0.5
    calls = [
        lambda k=k, v=v: ops.paged_attention(q, k, v, work, scale, options)
        for k, v in b.pools(n_pages, stored)
    ]
    return call_us(b.device, calls)


def planned(
    b: Bench, tables: Sequence[tuple[int, ...]], length: int, new: int, *, share: bool = True
) -> WorkList:
    """The list of a step that is not recorded: `new` rows of sequences of this length."""
    runs = [QueryRun(i * new, new, length - new, table) for i, table in enumerate(tables)]
    target = b.device.attention_pieces(b.shape.kv_heads)
    pieces = max(target // len(runs), 1)
    planned = plan_items(runs, PAGE, share=share, programs=pieces)
    positions = [run.start + i for run in runs for i in range(run.n_rows)]
    return on(b.device, make_work_list(planned.items, planned.rows, positions, planned.pages))


def decode_work(b: Bench, tables: Sequence[tuple[int, ...]], length: int) -> WorkList:
    """The list of a recorded step, as `gpu_decode` reads it: of fixed size, over page tables."""
    n, width = len(tables), max(map(len, tables)) + 1
    rows = [DecodeRow(i, length - 1, table) for i, table in enumerate(tables)]
    n_pieces = b.device.attention_pieces(b.shape.kv_heads)
    shared, words = decode_block(rows, n, Tables(PAGE, width, n), n_pieces)
    room = layout(n, n_pieces, shared=shared)
    block = torch.from_numpy(words)
    parts = zip(room.offsets, room.sizes, strict=False)
    _, items, entries, indptr, index = (block[at : at + size] for at, size in parts)
    spare = max(max(table) for table in tables) + 1
    pages = [page for t in tables for page in (*t, *[spare] * (width - len(t)))]
    return on(
        b.device,
        WorkList(
            items=items.view(-1, ITEM_WORDS),
            rows=entries,
            positions=torch.full((n,), length - 1, dtype=torch.int32),
            pages=torch.tensor([*pages, *[spare] * width], dtype=torch.int32),
            merge_indptr=indptr,
            merge_index=index,
            n_partials=room.entries,
            max_rows=n if shared else 1,
            total_rows=room.entries,
        ),
    )


def on(device: Device, work: WorkList) -> WorkList:
    """The list on the device; parts are copied, as kernels want them to begin at 16 bytes."""
    where = device.torch_device
    fields = vars(work).items()
    return replace(work, **{k: v.clone().to(where) for k, v in fields if isinstance(v, Tensor)})
