"""Times of every operation against what the machine allows and against plain torch.

    python benchmarks/kernels.py [THREADS] [--repeats N]

limit   the larger of bytes / measured copy bandwidth and multiplications / measured GEMM peak
torch   the fastest plain way: gather + SDPA with the heads of a group as query rows, F.linear, ...
Data rotates over copies larger than the cache, as the layers of a model do. Best of N.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import add, add_machine
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.dispatch import load_ops
from ramify.kernels.work_list import DIRECT, Item, WorkList, make_work_list

PAGE = 16
ROTATE_BYTES = 256 << 20  # many times a last-level cache, or part of it would be read from there
OPS, REFERENCE = load_ops("cpu"), load_ops("reference")


@dataclass(frozen=True)
class Model:
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int

    @property
    def kv_bytes(self) -> int:
        """Of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * 2


MODELS = (Model("SmolLM2-135M", 9, 3, 64, 576, 1536), Model("Qwen2.5-0.5B", 14, 2, 64, 896, 4864))


def best_us(run: Callable[[int], object], repeats: int) -> float:
    """The shortest of some calls; the argument counts them, to rotate over copies."""
    best = float("inf")
    for i in range(repeats + 2):
        start = time.perf_counter()
        run(i)
        if i >= 2:
            best = min(best, time.perf_counter() - start)
    return best * 1e6


@dataclass(frozen=True)
class Machine:
    bytes_per_us: float
    flops_per_us: float

    def limit_us(self, size_bytes: float, flops: float) -> float:
        return max(size_bytes / self.bytes_per_us, flops / self.flops_per_us)


def measure() -> Machine:
    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    copy = best_us(lambda _: target.copy_(source), 5)
    a = torch.randn(1024, 1024).bfloat16()
    gemm = best_us(lambda _: a @ a, 8)
    return Machine(2 * source.nbytes / copy, 2 * 1024**3 / gemm)


class Table:
    """Prints a line per measurement, at once."""

    def __init__(self, machine: Machine, repeats: int) -> None:
        self.machine, self.repeats = machine, repeats
        print(
            f"{'operation':44s} {'us':>9s} {'limit':>8s} {'of limit':>8s} {'torch':>9s} {'x':>6s}"
        )

    def add(
        self,
        name: str,
        ours: Callable[[int], object],
        torchs: Callable[[int], object] | None,
        size_bytes: float,
        flops: float = 0,
    ) -> None:
        mine = best_us(ours, self.repeats)
        limit = self.machine.limit_us(size_bytes, flops)
        line = f"{name:44s} {mine:9.1f} {limit:8.1f} {limit / mine:8.0%}"
        if torchs:
            theirs = best_us(torchs, self.repeats)
            line += f" {theirs:9.1f} {theirs / mine:6.1f}"
        print(line, flush=True)


def pools(model: Model, pages: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of pools, as many as it takes to leave the cache."""
    shape = (pages, model.kv_heads, PAGE, model.head_dim)
    count = max(2, min(64, ROTATE_BYTES // (pages * PAGE * model.kv_bytes)))
    return [(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()) for _ in range(count)]


def plain_list(page_runs: list[list[int]], length: int, queries: int = 1) -> WorkList:
    """One item per request, `queries` tokens at the end of `length` keys each."""
    items, rows, positions, pages = [], [], [], []
    for run in page_runs:
        items.append(Item(len(rows), queries, len(pages), 0, length, DIRECT))
        rows += range(len(rows), len(rows) + queries)
        positions += range(length - queries, length)
        pages += run
    return make_work_list(items, rows, positions, pages)


def trunk_list(trunk: list[int], tails: list[list[int]], tail_length: int) -> WorkList:
    """One item for the trunk with the rows of all requests, then one per request for its tail."""
    requests, length = len(tails), len(trunk) * PAGE
    items = [Item(0, requests, 0, 0, length, 0)]
    pages = list(trunk)
    for row, tail in enumerate(tails):
        items.append(Item(row, 1, len(pages), length, tail_length, requests + row))
        pages += tail
    positions = [length + tail_length - 1] * requests
    return make_work_list(items, list(range(requests)), positions, pages)


def gather(pool: Tensor, run: Tensor, length: int) -> Tensor:
    return pool[run].transpose(0, 1).flatten(1, 2)[None, :, :length]


def torch_decode(q: Tensor, pair: tuple[Tensor, Tensor], runs: list[Tensor], length: int) -> Tensor:
    kv_heads, head_dim = pair[0].shape[1], q.shape[2]
    outs = [
        F.scaled_dot_product_attention(
            row.view(1, kv_heads, -1, head_dim), *(gather(pool, run, length) for pool in pair)
        )
        for row, run in zip(q, runs, strict=True)
    ]
    return torch.cat([out.reshape(1, -1, head_dim) for out in outs])


def torch_prefill(q: Tensor, pair: tuple[Tensor, Tensor], run: Tensor, length: int) -> Tensor:
    group = q.shape[1] // pair[0].shape[1]
    k, v = (gather(pool, run, length).repeat_interleave(group, 1) for pool in pair)
    seen = torch.ones(len(q), length, dtype=torch.bool).tril(length - len(q))
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=seen)


def decode(table: Table, model: Model, requests: int, length: int = 1024) -> None:
    pages = length // PAGE
    order = torch.randperm(requests * pages).view(requests, pages)
    pairs = pools(model, requests * pages)
    q = torch.randn(requests, model.heads, model.head_dim).bfloat16()
    work, scale, runs = plain_list(order.tolist(), length), model.head_dim**-0.5, list(order)
    table.add(
        f"{model.name} decode ctx {length} B {requests}",
        lambda i: OPS.paged_attention(q, *pairs[i % len(pairs)], work, scale),
        lambda i: torch_decode(q, pairs[i % len(pairs)], runs, length),
        requests * length * model.kv_bytes,
    )


def shared_trunk(table: Table, model: Model, requests: int = 16, length: int = 1024) -> None:
    """Limits are those of each list: the plain one reads the trunk once per request."""
    trunk, tail = list(range(length // PAGE)), 32
    first = len(trunk)
    tails = [[first + 2 * r, first + 2 * r + 1] for r in range(requests)]
    pairs = pools(model, first + 2 * requests)
    q = torch.randn(requests, model.heads, model.head_dim).bfloat16()
    lists = {
        "trunk as one item": (trunk_list(trunk, tails, tail), length + requests * tail),
        "plain list": (plain_list([trunk + t for t in tails], length + tail), 0),
    }
    for name, (work, tokens) in lists.items():
        tokens = tokens or requests * (length + tail)
        table.add(
            f"{model.name} {requests} requests, {name}",
            lambda i, work=work: OPS.paged_attention(q, *pairs[i % len(pairs)], work, 0.125),
            None,
            tokens * model.kv_bytes,
            4 * requests * (length + tail) * model.heads * model.head_dim,
        )


def prefill(table: Table, model: Model, prefix: int, queries: int = 256) -> None:
    length = prefix + queries
    run = torch.randperm(length // PAGE)
    pairs = pools(model, length // PAGE)
    q = torch.randn(queries, model.heads, model.head_dim).bfloat16()
    work = plain_list([run.tolist()], length, queries)
    scores = sum(range(prefix + 1, length + 1)) * model.heads
    table.add(
        f"{model.name} prefill {queries} on {prefix}",
        lambda i: OPS.paged_attention(q, *pairs[i % len(pairs)], work, 0.125),
        lambda i: torch_prefill(q, pairs[i % len(pairs)], run, length),
        length * model.kv_bytes,
        4 * scores * model.head_dim,
    )


def linears(table: Table, model: Model) -> None:
    shapes = {"gate_up": (2 * model.intermediate, model.hidden)}
    shapes["down"] = (model.hidden, model.intermediate)
    for (name, (out, wide)), rows in itertools.product(shapes.items(), (1, 16, 256)):
        count = max(2, min(32, ROTATE_BYTES // (2 * out * wide)))
        weights = [torch.randn(out, wide).bfloat16() for _ in range(count)]
        packed = [OPS.pack_linear(weight, None) for weight in weights]
        x = torch.randn(rows, wide).bfloat16()
        table.add(
            f"{model.name} {name} {out}x{wide} M {rows}",
            lambda i, x=x, packed=packed: OPS.linear(x, packed[i % len(packed)]),
            lambda i, x=x, weights=weights: F.linear(x, weights[i % len(weights)]),
            2 * (out * wide + rows * (out + wide)),
            2 * rows * out * wide,
        )


def elementwise(table: Table, model: Model, tokens: int) -> None:
    x = torch.randn(tokens, model.hidden).bfloat16()
    residual, weight = x.clone(), torch.ones(model.hidden).bfloat16()
    gate_up = torch.randn(tokens, 2 * model.intermediate).bfloat16()
    width = (model.heads + 2 * model.kv_heads) * model.head_dim
    qkv = torch.randn(tokens, width).bfloat16()
    pool = torch.zeros(tokens // PAGE + 1, model.kv_heads, PAGE, model.head_dim).bfloat16()
    positions = torch.arange(tokens, dtype=torch.int32)
    rope = (qkv, positions, positions, torch.ones(tokens, model.head_dim), pool, pool.clone())
    calls = {
        "add_rms_norm": (lambda ops: ops.add_rms_norm(x, residual, weight, 1e-6), 4 * x.nbytes),
        "silu_mul": (lambda ops: ops.silu_mul(gate_up), 1.5 * gate_up.nbytes),
        "rope_write_kv": (lambda ops: ops.rope_write_kv(*rope, model.heads), 2 * qkv.nbytes),
    }
    for name, (call, size) in calls.items():
        table.add(
            f"{model.name} {name} T {tokens}",
            lambda _, call=call: call(OPS),
            lambda _, call=call: call(REFERENCE),
            size,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("threads", nargs="?", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    add_machine()
    add("threads", str(options.threads))
    machine = measure()
    print(f"copy {machine.bytes_per_us / 1e3:.1f} GB/s, GEMM {machine.flops_per_us / 1e3:.0f} GF/s")
    table = Table(machine, options.repeats)
    for model in MODELS:
        for requests in (1, 16):
            decode(table, model, requests)
        shared_trunk(table, model)
        for prefix in (0, 2048):
            prefill(table, model, prefix)
        linears(table, model)
        for tokens in (1, 256):
            elementwise(table, model, tokens)


if __name__ == "__main__":
    main()
