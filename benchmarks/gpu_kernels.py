"""Every other kernel by itself, at the sizes of real layers, against its bytes and operations."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from gpu_attention import Bench
from gpu_lines import Case, Figure
from gpu_shapes import BANDWIDTH, FLOPS, FP8_FLOPS, LARGE, PAGE
from gpu_timing import call_us, copies_of
from torch import Tensor

from ramify.kernels.dispatch import load_ops
from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.ops import Ops
from ramify.kernels.quantised_linear import BLOCK, FP8, PER_WORD, Fp8Blocks, Fp8Rows, Int4Linear

FEW, MANY = (1, 32, 256), 4096
MOVED = 64  # pages
MOE = {"experts": 128, "top": 8, "hidden": 2048, "middle": 768}  # sizes of Qwen3-30B-A3B


@dataclass(frozen=True)
class Work:
    """Calls to go round in, and what one of them must move and multiply at least."""

    calls: Sequence[Callable[[], object]]
    bytes: float
    operations: float = 0.0
    rate: float = FLOPS

    @property
    def floor_us(self) -> float:
        return max(self.bytes / BANDWIDTH, self.operations / self.rate) * 1e6


Make = Callable[[Bench, Ops, int], Work]


def cases(benches: Sequence[Bench]) -> Iterator[Case]:
    """Of the first shape, then those whose sizes are their own, then of the other shapes."""
    b, *others = benches
    yield from of_a_layer(b)
    for what, make, sizes in OF_THEIR_OWN:
        for n in sizes:
            name = f"{what}, {n} rows"
            yield Case(name, partial(measure, b, name, make, n))
    for what in ("copied in the pool", "gathered into host memory", "scattered from host memory"):
        name = f"{LARGE} pages {what}, {MOVED}"
        yield Case(name, partial(pages, b, name, what))
    for other in others:
        yield from of_a_layer(other)


def of_a_layer(b: Bench) -> Iterator[Case]:
    for what, make, sizes in OF_A_LAYER:
        for n in sizes:
            name = f"{b.name} {what}, {n} rows"
            yield Case(name, partial(measure, b, name, make, n))


def measure(b: Bench, name: str, make: Make, n: int) -> Iterator[Figure]:
    work = make(b, load_ops(b.backend), b.rows(n))
    us, unit = call_us(b.device, work.calls)
    yield Figure(name, us, unit, work.floor_us / us)


def turns(b: Bench, call: Callable[..., object], *sizes: tuple[int, ...]) -> list[Callable]:
    """Calls with random tensors of these sizes; several sets, so that none stays in the cache."""
    n = copies_of(b.device, sum(torch.Size(s).numel() for s in sizes) * b.dtype.itemsize)
    return [partial(call, *(b.random(*size) for size in sizes)) for _ in range(n)]


# --- of a layer ----------------------------------------------------------------------------------


def norm(b: Bench, ops: Ops, n: int) -> Work:
    c, weight = b.shape.hidden, b.random(b.shape.hidden)
    return Work(turns(b, lambda x: ops.rms_norm(x, weight, 1e-5), (n, c)), 4 * n * c)


def add_norm(b: Bench, ops: Ops, n: int) -> Work:
    c, weight = b.shape.hidden, b.random(b.shape.hidden)
    calls = turns(b, lambda x, y: ops.add_rms_norm(x, y, weight, 1e-5), (n, c), (n, c))
    return Work(calls, 8 * n * c)


def silu(b: Bench, ops: Ops, n: int) -> Work:
    width = b.shape.intermediate
    return Work(turns(b, ops.silu_mul, (n, 2 * width)), 6 * n * width)


def silu_fp8(b: Bench, ops: Ops, n: int) -> Work:
    width = b.shape.intermediate
    return Work(turns(b, ops.silu_mul_fp8, (n, 2 * width)), 5 * n * width)


def to_fp8(b: Bench, ops: Ops, n: int) -> Work:
    c = b.shape.hidden
    return Work(turns(b, ops.quantise_rows, (n, c)), 3 * n * c)


def rope(b: Bench, ops: Ops, n: int, stored: torch.dtype | None = None) -> Work:
    """With the write into the pools."""
    s, where = b.shape, b.device.torch_device
    n_pages, widths = -(-n // PAGE) + 1, (s.heads + 2 * s.kv_heads) * s.head_dim
    positions = torch.arange(n, dtype=torch.int32, device=where)
    slots = torch.randperm(n_pages * PAGE, device=where)[:n]
    cos_sin = torch.rand(n, s.head_dim, device=where)
    pools = [b.random(n_pages, s.kv_heads, PAGE, s.head_dim, dtype=stored) for _ in "kv"]
    scales = {} if stored is None else {"k_scale": 0.5, "v_scale": 0.5}

    def call(qkv: Tensor) -> Tensor:
        return ops.rope_write_kv(qkv, positions, slots, cos_sin, *pools, s.heads, **scales)

    size = pools[0].dtype.itemsize if b.device.is_cuda else 2
    written = n * s.head_dim * (2 * s.heads + 2 * s.kv_heads * size)
    return Work(turns(b, call, (n, widths)), 2 * n * widths + written + 4 * n * s.head_dim)


def rope_fp8(b: Bench, ops: Ops, n: int) -> Work:
    return rope(b, ops, n, FP8)


def weights(b: Bench, ops: Ops, n: int, per_number: float, rate: float, make, call) -> Work:
    """A product with the weight of gate and up, [2 I, C]: in `per_number` bytes each."""
    out, c = 2 * b.shape.intermediate, b.shape.hidden
    size = int(out * c * per_number)
    packed = [make(b, out, c) for _ in range(copies_of(b.device, size))]
    calls = [partial(call, b.random(n, c), p) for p in packed]
    return Work(calls, size + 2 * n * (c + out), 2 * n * out * c, rate)


def linear(b: Bench, ops: Ops, n: int) -> Work:
    def make(b: Bench, out: int, c: int):
        return ops.pack_linear(b.random(out, c), None)

    return weights(b, ops, n, 2, FLOPS, make, ops.linear)


def int4(b: Bench, ops: Ops, n: int) -> Work:
    return weights(b, ops, n, 0.5, FLOPS, int4_weight, ops.linear_int4)


def int4_weight(b: Bench, out: int, c: int) -> Int4Linear:
    where, groups = b.device.torch_device, max(c // 128, 1)
    return Int4Linear(
        torch.randint(-(2**31), 2**31, (c // PER_WORD, out), dtype=torch.int32, device=where),
        b.random(groups, out).abs() * 0.01,
        torch.randint(0, 16, (groups, out), dtype=torch.uint8, device=where),
        None,
    )


def fp8_rows(b: Bench, ops: Ops, n: int) -> Work:
    def make(b: Bench, out: int, c: int):
        scale = torch.rand(out, device=b.device.torch_device) + 0.5
        return Fp8Rows(b.random(out, c, dtype=FP8), scale, None)

    def call(x: Tensor, packed: Fp8Rows) -> Tensor:
        return ops.linear_fp8_rows(*ops.quantise_rows(x), packed, b.dtype)

    return weights(b, ops, n, 1, FP8_FLOPS, make, call)


def fp8_blocks(b: Bench, ops: Ops, n: int) -> Work:
    def make(b: Bench, out: int, c: int):
        sides = -(-out // BLOCK), -(-c // BLOCK)
        scale = torch.rand(*sides, device=b.device.torch_device) + 0.5
        return Fp8Blocks(b.random(out, c, dtype=FP8), scale, None)

    return weights(b, ops, n, 1, FP8_FLOPS, make, ops.linear_fp8_blocks)


OF_A_LAYER: tuple[tuple[str, Make, tuple[int, ...]], ...] = (
    ("norm", norm, (32, MANY)),
    ("add + norm", add_norm, (*FEW, MANY)),
    ("rope + write", rope, (*FEW, MANY)),
    ("rope + write, fp8 pool", rope_fp8, (32, MANY)),
    ("silu * up", silu, (*FEW, MANY)),
    ("silu * up as fp8", silu_fp8, (32, MANY)),
    ("as fp8", to_fp8, (32, MANY)),
    ("linear bf16", linear, (*FEW, MANY)),
    ("linear int4", int4, (*FEW, MANY)),
    ("linear fp8 by row", fp8_rows, (*FEW, MANY)),
    ("linear fp8 by block", fp8_blocks, (*FEW, MANY)),
)


# --- of their own sizes: logits, experts, pages --------------------------------------------------


def logits(b: Bench, n: int) -> list[Tensor]:
    where, vocab = b.device.torch_device, b.shape.vocab
    made = range(copies_of(b.device, 4 * n * vocab))
    return [torch.randn(n, vocab, device=where) * 3 for _ in made]


def sample(b: Bench, ops: Ops, n: int, top_k: int = -1, top_p: float = 1.0, t: float = 1.0) -> Work:
    where = b.device.torch_device

    def full(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((n,), value, dtype=dtype, device=where)

    draws = Draws(
        temperature=full(t, torch.float32),
        top_k=full(top_k, torch.int32),
        top_p=full(top_p, torch.float64),
        min_p=full(0.0, torch.float32),
        random=torch.rand(n, dtype=torch.float64, device=where),
    )
    return Work([partial(ops.sample, x, draws) for x in logits(b, n)], 4 * n * b.shape.vocab)


def masks(b: Bench, ops: Ops, n: int) -> Work:
    """Half of all tokens forbidden: as many words again as the logits are numbers, at most."""
    where, words = b.device.torch_device, -(-b.shape.vocab // 32)
    rows = torch.arange(n, device=where)
    mask = torch.randint(-(2**31), 2**31, (n, words), dtype=torch.int32, device=where)
    calls = [partial(ops.mask_logits, x, rows, mask) for x in logits(b, n)]
    return Work(calls, 2 * n * b.shape.vocab + 4 * n * words)


def penalties(b: Bench, ops: Ops, n: int) -> Work:
    """Penalties and a mask for every row, a bias for each."""
    where, vocab = b.device.torch_device, b.shape.vocab
    i32 = {"dtype": torch.int32, "device": where}
    rows = torch.arange(n, device=where)
    adjustments = Adjustments(
        rows,
        rows.int(),
        rows.int(),
        *(torch.full((n,), x, device=where) for x in (1.1, 0.0, 0.1)),
        torch.randint(0, 3, (n, vocab), **i32),
        torch.full((n, -(-vocab // 32)), -1, **i32),
        rows,
        rows,
        torch.full((n,), 0.5, device=where),
    )
    calls = [partial(ops.adjust_logits, x, adjustments) for x in logits(b, n)]
    return Work(calls, 12 * n * vocab + n * vocab // 8)


def route(b: Bench, ops: Ops, n: int) -> Work:
    e, top = MOE["experts"], MOE["top"]
    return Work(turns(b, lambda x: ops.route_experts(x, top, True), (n, e)), n * (2 * e + 8 * top))


def experts(b: Bench, ops: Ops, n: int) -> Work:
    """The experts that some token has are read once; all are, from a few dozen tokens on."""
    e, top = MOE["experts"], MOE["top"]
    c, middle = b.rows(MOE["hidden"]), b.rows(MOE["middle"])
    gate_up, down = b.random(e, 2 * middle, c) / 20, b.random(e, c, middle) / 20
    shares, chosen = ops.route_experts(b.random(n, e), top, True)
    read = int(chosen.unique().numel())
    calls = turns(b, lambda x: ops.moe_mlp(x, gate_up, down, shares, chosen), (n, c))
    operations = 2 * n * top * 3 * middle * c
    return Work(calls, read * 3 * middle * c * 2 + 4 * n * c, operations)


OF_THEIR_OWN: tuple[tuple[str, Make, tuple[int, ...]], ...] = (
    ("sample greedy", partial(sample, t=0.0), (1, 256)),
    ("sample plain", sample, (1, 256)),
    ("sample top_p 0.9", partial(sample, top_p=0.9), (1, 256)),
    ("sample top_k 50, top_p 0.9", partial(sample, top_k=50, top_p=0.9), (256,)),
    ("mask logits", masks, (1, 256)),
    ("adjust logits", penalties, (1, 256)),
    ("route to 8 of 128 experts", route, FEW),
    ("8 of 128 experts", experts, (*FEW, MANY)),
)


def pages(b: Bench, name: str, what: str) -> Iterator[Figure]:
    """Pages of all layers. Through host memory the limit is the bus, which has no floor here."""
    s, where = b.shape, b.device.torch_device
    n, layers = b.rows(MOVED), min(s.layers, b.rows(s.layers) + 1)
    sizes = layers, 2 * n, s.kv_heads, PAGE, s.head_dim
    keys, values = b.random(*sizes), b.random(*sizes)
    place = "ramify.kernels.triton.page_copy" if b.backend == "triton" else (
        "ramify.kernels.reference.pages")  # fmt: skip
    module = importlib.import_module(place)
    moved = n * keys[:, 0].numel() * 2 * keys.dtype.itemsize
    numbers = torch.arange(n, device=where)
    if what == "copied in the pool":
        whole = torch.full_like(numbers, PAGE)
        copies = torch.stack((numbers, numbers + n, whole), 1)
        us, unit = call_us(b.device, [lambda: module.copy_pages(keys, values, copies)])
        yield Figure(name, us, unit, 2 * moved / BANDWIDTH * 1e6 / us)
        return
    slots = torch.zeros(n, 2, layers, *sizes[2:], dtype=keys.dtype, pin_memory=b.device.is_cuda)
    move = module.gather_pages if what.startswith("gather") else module.scatter_pages
    us, unit = call_us(b.device, [lambda: move(keys, values, numbers, slots, numbers)], repeats=3)
    yield Figure(name, us, unit)
    yield Figure(f"{name}, rate", moved / us / 1e3, "GB/s")
