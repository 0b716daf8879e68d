"""What gpu_check.py measures, for any device: so its code runs on a CPU too, on tiny shapes."""

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from ramify.kernels.dispatch import load_ops
from ramify.kernels.drawing import Draws
from ramify.kernels.work_list import make_work_list
from ramify.radix_cache import eviction
from ramify.radix_cache.kv_pool import KvPool, bytes_per_page
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.clock import MonotonicClock
from ramify.srt.execution.device import Device
from ramify.srt.execution.gpu_runner import GpuRunner
from ramify.srt.execution.graphs import CudaGraphs, NoGraphs
from ramify.srt.execution.model_runner import Pending
from ramify.srt.messages import ModelInfo, Submit, Tokens, pack_ids
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.llama import LlamaModel
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import Chunk, Enter, StepPlan
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.weights.dummy import DummySource
from ramify.srt.workers.engine_core import EngineCore

BANDWIDTH, FLOPS = 4.3e12, 790e12  # of an H200: bytes/s, bf16 operations/s
PAGE, WARM_UP, STEPS = 64, 8, 40
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=1 << 20, ignore_eos=True)


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights of all layers: those that every token of a prompt goes through."""
        h, d = self.hidden, self.head_dim
        one = h * (self.heads + 2 * self.kv_heads) * d + self.heads * d * h
        return self.layers * (one + 3 * h * self.intermediate + 2 * h)

    @property
    def kv_bytes(self) -> int:
        """Of one token, in all layers."""
        return 2 * self.kv_heads * self.head_dim * self.layers * 2


SHAPES = {
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, True),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, True),
}


def hf_config(shape: Shape) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32768,
    }


def floor_ms(shape: Shape, batch: int, context: int) -> float:
    """A decode step cannot be shorter: it reads the weights, and the keys and values, once."""
    weights = shape.linear + shape.vocab * shape.hidden
    seconds = max(2 * weights / BANDWIDTH, 2 * weights * batch / FLOPS)
    return (seconds + batch * context * shape.kv_bytes / BANDWIDTH) * 1e3


def prefill_floor_ms(shape: Shape, n: int) -> float:
    attention = 2 * shape.heads * shape.head_dim * shape.layers * n * n
    return (2 * shape.linear * n + attention) / FLOPS * 1e3


class DeviceDummy(DummySource):
    """Random weights made on the device: billions of them on a CPU would take minutes."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        super().__init__(0, dtype)
        self._where = device.torch_device

    def _values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return super()._values(name, shape).to(self._where)
        generator = torch.Generator(self._where).manual_seed(crc32(name.encode()))
        return torch.randn(shape, generator=generator, device=self._where) * 0.02


@dataclass
class Rig:
    """A runner over random weights, and the pool that it writes."""

    shape: Shape
    device: Device
    runner: GpuRunner
    n_pages: int
    max_rows: int
    longest: int
    step_tokens: int
    number: int = 0

    @classmethod
    def make(
        cls,
        shape: Shape,
        device: Device,
        backend: str,
        *,
        max_rows: int,
        longest: int,
        n_pages: int | None = None,
        step_tokens: int = 4096,
    ) -> "Rig":
        dtype = torch.bfloat16 if device.is_cuda else torch.float32
        config = ModelConfig.from_hf({"architectures": ["Qwen2ForCausalLM"], **hf_config(shape)})
        with torch.inference_mode():
            ops = load_ops(backend)
            model = LlamaModel(config, DeviceDummy(device, dtype), ops, dtype)
            model.cos_sin = model.cos_sin.to(device.torch_device)
        if n_pages is None:
            sizes = shape.layers, shape.kv_heads, PAGE, shape.head_dim, dtype
            free, total = device.free_and_total
            most = -(-longest // PAGE) * max_rows
            n_pages = min(int(free - 0.12 * total) // bytes_per_page(*sizes), most)
        pool = KvPool(
            shape.layers, n_pages + 1, shape.kv_heads, PAGE, shape.head_dim, dtype,
            device.torch_device,
        )  # fmt: skip
        runner = GpuRunner(
            device,
            CudaGraphs() if device.is_cuda else NoGraphs(),
            model,
            pool,
            (),
            max_requests=max_rows,
            max_pages=-(-longest // PAGE) + 1,
            max_graph_rows=max_rows,
        )
        return cls(shape, device, runner, n_pages, max_rows, longest, step_tokens)

    def holds(self, batch: int, context: int) -> bool:
        return batch * self.pages_for(context + WARM_UP + STEPS) <= self.n_pages

    @staticmethod
    def pages_for(n: int) -> int:
        return -(-n // PAGE)

    def plan(self, enters=(), leaves=(), chunks=()) -> StepPlan:
        self.number += 1
        return StepPlan(self.number, tuple(leaves), tuple(enters), (), tuple(chunks))


def wait_for(device: Device) -> None:
    if device.is_cuda:
        torch.cuda.synchronize()


def decode_ms(rig: Rig, batch: int, context: int, steps: int = STEPS) -> float:
    """Time of a decode step, the next one always planned ahead. What the keys hold is no matter."""
    per_row = rig.pages_for(context + WARM_UP + steps)
    names = [f"d{i}" for i in range(batch)]
    enters = [_enter(name) for name in names]
    tables = [tuple(range(i * per_row, (i + 1) * per_row)) for i in range(batch)]
    pending, began = None, 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait_for(rig.device)
            began = time.perf_counter()
        at = context + step
        chunks = [
            Chunk(name, i, at, array("I", [1]), table[: at // PAGE + 1], True, follows=step > 0)
            for i, (name, table) in enumerate(zip(names, tables, strict=True))
        ]
        launched = rig.runner.launch(rig.plan(enters if step == 0 else (), (), chunks))
        if pending is not None:
            pending.result()
        pending = launched
    pending.result()
    seconds = time.perf_counter() - began
    rig.runner.launch(rig.plan(leaves=names))
    return seconds / steps * 1e3


def prefill_ms(rig: Rig, n: int, rounds: int = 5) -> float:
    """The shortest time from a prompt of n tokens to its first token, in as few steps as may be."""
    table = tuple(range(rig.pages_for(n)))
    best = float("inf")
    for _ in range(rounds):
        wait_for(rig.device)
        began, done = time.perf_counter(), None
        for start in range(0, n, rig.step_tokens):
            end = min(start + rig.step_tokens, n)
            ids = array("I", [1 + k % 97 for k in range(start, end)])
            chunk = Chunk("p", 1, start, ids, table[: rig.pages_for(end)], end == n)
            done = rig.runner.launch(rig.plan([_enter("p")] if start == 0 else (), (), [chunk]))
        done.result()
        best = min(best, time.perf_counter() - began)
        rig.runner.launch(rig.plan(leaves=["p"]))
    return best * 1e3


def _enter(name: str) -> Enter:
    return Enter(name, GREEDY, array("I", [1]), array("I"), 0, False)


def shared_trunk(
    rig: Rig, *, reuse: bool, n: int = 64, trunk: int = 2048, own: int = 64, new: int = 128
) -> float:
    """Generated tokens per second of requests that come at once, through the scheduler.

    The second of two rounds, with other tokens than the first: nothing of it is cached.
    """
    runner = Following(rig.runner)
    core = _core(rig, runner, reuse=reuse)
    for salt in (1, 2):
        sampling = SamplingParams(temperature=0.0, max_new_tokens=new, ignore_eos=True)
        shared = [1 + (salt * 7 + k * 13) % 101 for k in range(trunk)]
        wait_for(rig.device)
        began = time.perf_counter()
        for i in range(n):
            mine = [1 + (salt * 31 + i * 17 + k * 29) % 103 for k in range(own)]
            refused = core.submit(Submit(f"{salt}.{i}", pack_ids([*shared, *mine]), sampling), 0.0)
            assert refused is None, refused
        made = 0
        while not core.idle:
            made += sum(len(m.token_ids) for m in core.step() if isinstance(m, Tokens))
        seconds = time.perf_counter() - began
        assert made == n * new, f"{made} tokens instead of {n * new}"
    rig.runner.launch(rig.plan(leaves=runner.inside))
    return made / seconds


class Following:
    """A runner, and who is inside: a scheduler tells of its last leaves with its next step only."""

    def __init__(self, runner: GpuRunner) -> None:
        self._runner = runner
        self.inside: list[str] = []

    def launch(self, plan: StepPlan) -> Pending:
        self.inside = [name for name in self.inside if name not in plan.leaves]
        self.inside += [enter.request_id for enter in plan.enters]
        return self._runner.launch(plan)


def _core(rig: Rig, runner: Following, *, reuse: bool) -> EngineCore:
    vocab, tokens = rig.shape.vocab, rig.n_pages * PAGE
    limits = SchedulerLimits(
        context_length=min(rig.longest, tokens),
        eos_token_ids=(),
        step_tokens=rig.step_tokens,
        max_running_requests=rig.max_rows,
        max_queued_requests=4096,
        starvation_bound=64,
    )
    cache = PrefixCache(rig.n_pages, PAGE, policy=eviction.POLICIES["lru"], reuse=reuse)
    info = ModelInfo(vocab, limits.context_length, (), "", "", "", 0, tokens, 0.0)
    return EngineCore(Scheduler(limits, cache), runner, info, MonotonicClock(), overlap=True)


# --- kernels -------------------------------------------------------------------------------------


def kernel_rows(
    device: Device, backend: str, shape: Shape = SHAPES["Llama-3.1-8B"], scale: int = 1
) -> Iterator[tuple[str, float, float]]:
    """(what, microseconds, the floor's) of single calls. `scale` divides sizes, for a CPU."""
    ops, where = load_ops(backend), device.torch_device
    dtype = torch.bfloat16 if device.is_cuda else torch.float32
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=where, dtype=dtype)

    for batch, context in ((1, 1024), (32, 1024), (256, 1024), (32, 4096)):
        batch, context = -(-batch // scale), context // scale
        q, work, pools = _attention(device, shape, numbers, [(1, context)] * batch)
        us = call_us(device, lambda q=q, w=work, p=pools: ops.paged_attention(q, *p, w, dim**-0.5))
        floor = batch * context * 2 * kv_heads * dim * 2 / BANDWIDTH * 1e6
        yield f"attention, decode B={batch} ctx={context}", us, floor
    n = 4096 // scale
    q, work, pools = _attention(device, shape, numbers, [(n, n)])
    us = call_us(device, lambda: ops.paged_attention(q, *pools, work, dim**-0.5))
    yield f"attention, prefill {n}", us, 2 * heads * dim * n * n / FLOPS * 1e6
    for rows in (256 // scale, 4096 // scale):
        x, residual = numbers(rows, shape.hidden), numbers(rows, shape.hidden)
        weight = numbers(shape.hidden)
        us = call_us(device, lambda a=x, b=residual, w=weight: ops.add_rms_norm(a, b, w, 1e-5))
        yield f"add + norm, {rows} rows", us, 4 * x.numel() * 2 / BANDWIDTH * 1e6
        gate_up = numbers(rows, 2 * shape.intermediate)
        us = call_us(device, lambda g=gate_up: ops.silu_mul(g))
        yield f"silu * up, {rows} rows", us, 1.5 * gate_up.numel() * 2 / BANDWIDTH * 1e6
    logits = torch.randn(256 // scale, shape.vocab, device=where)
    for name, top_p in (("plain", 1.0), ("top_p 0.9", 0.9)):
        draws = _draws(len(logits), top_p, where)
        us = call_us(device, lambda d=draws: ops.sample(logits, d))
        yield f"sample {name}, {len(logits)} rows", us, logits.numel() * 4 / BANDWIDTH * 1e6


def _attention(device: Device, shape: Shape, numbers, runs: list[tuple[int, int]]):
    """(queries, work list, pools) of sequences, each (new rows, length), without a page shared."""
    made, first, page = [], 0, 0
    for rows, length in runs:
        pages = tuple(range(page, page + -(-length // PAGE)))
        made.append(QueryRun(first, rows, length - rows, pages))
        first, page = first + rows, page + len(pages)
    target = device.attention_pieces(shape.kv_heads)
    items = plan_items(made, PAGE, programs=target)
    positions = [run.start + i for run in made for i in range(run.n_rows)]
    work = make_work_list(items.items, items.rows, positions, items.pages)
    moved = {k: v.to(device.torch_device) for k, v in vars(work).items() if isinstance(v, Tensor)}
    work = type(work)(**{**vars(work), **moved})
    pools = [numbers(page, shape.kv_heads, PAGE, shape.head_dim) for _ in "kv"]
    return numbers(first, shape.heads, shape.head_dim), work, pools


def _draws(n: int, top_p: float, where: torch.device) -> Draws:
    def full(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((n,), value, dtype=dtype, device=where)

    return Draws(
        temperature=full(1.0, torch.float32),
        top_k=full(-1, torch.int32),
        top_p=full(top_p, torch.float64),
        min_p=full(0.0, torch.float32),
        random=full(0.5, torch.float64),
    )


def call_us(device: Device, call: Callable[[], object], repeats: int = 20) -> float:
    """Time of one of many calls that follow each other: launches hide behind work, if they can."""
    for _ in range(3):
        call()
    wait_for(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait_for(device)
    return (time.perf_counter() - began) / repeats * 1e6
