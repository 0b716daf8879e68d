"""Steps and requests on random weights of real shapes: the runner, and the scheduler over it."""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from zlib import crc32

import torch
from gpu_lines import Case, Figure
from gpu_shapes import (
    BATCHES,
    CONTEXTS,
    PAGE,
    PREFILLS,
    WORKLOADS,
    Shape,
    Workload,
    decode_name,
    floor_ms,
    hf_config,
    idle_name,
    prefill_floor_ms,
    prefill_name,
    workload_name,
)
from gpu_timing import elapsed_us, wait_for
from torch import Tensor

from ramify.kernels.dispatch import load_ops
from ramify.radix_cache import eviction
from ramify.radix_cache.kv_pool import KvPool, bytes_per_page
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.clock import MonotonicClock
from ramify.srt.execution.device import Device
from ramify.srt.execution.gpu_runner import GpuRunner
from ramify.srt.execution.graphs import CudaGraphs, Graphs, NoGraphs, Replay
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

WARM_UP, STEPS = 8, 40
ROOM = PAGE  # positions beyond a decode run, into which its recordings are replayed
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=1 << 20, ignore_eos=True)


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


class Noted:
    """Recordings, and which of them were replayed last: forward and sample, of a decode step."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self.last: list[Replay] = []

    def capture(self, work: Callable[[], None], static: Sequence[Tensor]) -> Replay:
        replay = self._graphs.capture(work, static)

        def noted() -> None:
            self.last = [*self.last[-1:], replay]
            replay()

        return noted


@dataclass
class Rig:
    """A runner over random weights, and the pool that it writes."""

    shape: Shape
    device: Device
    runner: GpuRunner
    graphs: Noted
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
        with torch.inference_mode():
            pool.keys.normal_()  # reading zeros may be faster than reading what a cache holds
            pool.values.normal_()
        graphs = Noted(CudaGraphs() if device.is_cuda else NoGraphs())
        runner = GpuRunner(
            device,
            graphs,
            model,
            pool,
            (),
            max_requests=max_rows,
            max_pages=-(-longest // PAGE) + 1,
            max_graph_rows=max_rows,
        )
        return cls(shape, device, runner, graphs, n_pages, max_rows, longest, step_tokens)

    def holds(self, batch: int, context: int) -> bool:
        return batch * self.pages_for(context + WARM_UP + STEPS + ROOM) <= self.n_pages

    @staticmethod
    def pages_for(n: int) -> int:
        return -(-n // PAGE)

    def plan(self, enters=(), leaves=(), chunks=()) -> StepPlan:
        self.number += 1
        return StepPlan(self.number, tuple(leaves), tuple(enters), (), tuple(chunks))


# --- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decode:
    """Milliseconds of a decode step: from step to step, and of its recordings alone."""

    step: float
    recordings: float

    @property
    def idle(self) -> float:
        """The share of the time in which the device runs no recording. 0 where they overlap."""
        return max(1 - self.recordings / self.step, 0.0)


def decode(rig: Rig, batch: int, context: int, steps: int = STEPS) -> Decode:
    """The next step is always planned ahead. What the keys hold is no matter.

    The recordings are then replayed by themselves, one right after the other: what they take is
    what the device is busy for in a step. They go on writing behind the last position.
    """
    per_row = rig.pages_for(context + WARM_UP + steps + ROOM)
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
    wall = (time.perf_counter() - began) / steps
    recordings = recorded_ms(rig, min(steps, ROOM))
    rig.runner.launch(rig.plan(leaves=names))
    return Decode(wall * 1e3, recordings)


def recorded_ms(rig: Rig, steps: int) -> float:
    """The time of the recordings of the last decode step, by the device's own clock."""

    def again() -> None:
        for _ in range(steps):
            for replay in recordings:
                replay()

    recordings = rig.graphs.last
    with torch.inference_mode():
        return elapsed_us(rig.device, again, 1) / steps / 1e3


def prefill_ms(rig: Rig, n: int, rounds: int = 4) -> float:
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


# --- requests ------------------------------------------------------------------------------------


def served(rig: Rig, work: Workload, *, reuse: bool = True, rounds: int = 3) -> float:
    """Generated tokens per second of requests that come at once, through the scheduler.

    The best of the rounds after the first; each has other tokens, so that nothing of it is cached.
    """
    runner = Following(rig.runner)
    core = _core(rig, runner, reuse=reuse)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=work.new, ignore_eos=True)
    speeds = []
    for salt in range(rounds):
        prompts = [pack_ids(prompt) for prompt in work.prompts(salt)]
        wait_for(rig.device)
        began = time.perf_counter()
        for i, prompt in enumerate(prompts):
            refused = core.submit(Submit(f"{salt}.{i}", prompt, sampling), 0.0)
            if refused is not None:
                raise RuntimeError(f"refused: {refused}")
        made = 0
        while not core.idle:
            made += sum(len(m.token_ids) for m in core.step() if isinstance(m, Tokens))
        speeds.append(made / (time.perf_counter() - began))
        if made != work.requests * work.new:
            raise RuntimeError(f"{made} tokens instead of {work.requests * work.new}")
    rig.runner.launch(rig.plan(leaves=runner.inside))
    return max(speeds[1:])


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


# --- cases ---------------------------------------------------------------------------------------


class EngineCases:
    """What is measured of one shape; the rig is made when the first case needs it."""

    def __init__(self, device: Device, backend: str, name: str, shape: Shape) -> None:
        self.device, self.backend, self.name, self.shape = device, backend, name, shape

    @cached_property
    def rig(self) -> Rig:
        longest = max(*CONTEXTS, *PREFILLS) + WARM_UP + STEPS + 2 * ROOM
        rows = max(BATCHES)
        return Rig.make(self.shape, self.device, self.backend, max_rows=rows, longest=longest)

    def cases(self) -> Iterator[Case]:
        for batch, context in product(BATCHES, CONTEXTS):
            run = partial(self.decode, batch, context)
            yield Case(decode_name(self.name, batch, context), run)
        for n in PREFILLS:
            yield Case(prefill_name(self.name, n), partial(self.prefill, n))
        for workload in WORKLOADS:
            run = partial(self.workload, workload)
            yield Case(workload_name(self.name, workload), run)

    def decode(self, batch: int, context: int) -> Iterator[Figure]:
        name = decode_name(self.name, batch, context)
        if not self.rig.holds(batch, context):
            yield Figure(name, "does not fit the memory")
            return
        took, floor = decode(self.rig, batch, context), floor_ms(self.shape, batch, context)
        yield Figure(name, batch / took.step * 1e3, "tok/s", floor / took.step)
        if (batch, context) == (32, CONTEXTS[0]):
            yield Figure(idle_name(self.name), 100 * took.idle, "%")

    def prefill(self, n: int) -> Iterator[Figure]:
        ms, floor = prefill_ms(self.rig, n), prefill_floor_ms(self.shape, n)
        yield Figure(prefill_name(self.name, n), n / ms * 1e3, "tok/s", floor / ms)

    def workload(self, workload: str) -> Iterator[Figure]:
        name, work = workload_name(self.name, workload), WORKLOADS[workload]
        yield Figure(name, served(self.rig, work), "tok/s")
        if work.trunk:
            yield Figure(f"{name}, without cache", served(self.rig, work, reuse=False), "tok/s")
