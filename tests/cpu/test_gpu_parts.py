"""Everything that the check of a GPU measures, run on a CPU on a tiny shape: so that it can run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_attention
import gpu_engine
import gpu_flashinfer
import gpu_goals
import gpu_kernels
import gpu_lines
import gpu_parts
import gpu_shapes
from gpu_attention import Bench, decode_work, planned, separate_tables, trunk_tables
from gpu_shapes import LARGE, PAGE, Shape, Workload

from ramify.kernels import dispatch
from ramify.kernels.reference.attention import paged_attention
from ramify.kernels.work_list import check
from ramify.srt.execution.device import Device

CPU = Device(torch.device("cpu"))
TINY = Shape(2, 64, 96, 4, 2, 16, 211, True)
TINY_SHAPES = dict.fromkeys(gpu_shapes.SHAPES, TINY)
SCALE = 256


def figures(part, scale=SCALE):
    made = gpu_parts.PARTS[part](CPU, "reference", TINY_SHAPES, scale)
    with torch.inference_mode():
        return {figure.name: figure for case in made for figure in case.run()}


def test_floors_are_those_of_the_models():
    """Milliseconds worked out by hand from the shapes, for 4.3 TB/s and 790 TFLOP/s."""
    llama, small = gpu_shapes.SHAPES[LARGE], gpu_shapes.SHAPES[gpu_shapes.SMALL]
    assert gpu_shapes.floor_ms(llama, 1, 1024) == pytest.approx(3.52, abs=0.01)
    assert gpu_shapes.floor_ms(llama, 32, 4096) == pytest.approx(7.49, abs=0.01)
    assert gpu_shapes.floor_ms(small, 256, 1024) == pytest.approx(1.07, abs=0.01)
    assert gpu_shapes.prefill_floor_ms(llama, 4096) == pytest.approx(77.9, abs=0.1)


def test_every_kernel_is_measured(monkeypatch):
    """Each op of the table by some row, so that none is forgotten; and every row gives a time."""
    called = set()

    def noting(backend):
        ops = dispatch.load_ops(backend)
        for name in dispatch.TABLE:
            setattr(ops, name, noted(name, getattr(ops, name)))
        return ops

    def noted(name, op):
        def call(*args, **options):
            called.add(name)
            return op(*args, **options)

        return call

    for module in (gpu_attention, gpu_kernels):
        monkeypatch.setattr(module, "load_ops", noting)
    made = {**figures("attention"), **figures("kernels")}
    assert called == set(dispatch.TABLE)
    assert len(made) >= 100
    for figure in made.values():
        assert figure.value > 0
        assert figure.share is None or figure.share > 0
    without = [name for name, figure in made.items() if figure.share is None]
    assert all(name.endswith(", rate") or "host memory" in name for name in without)


def test_a_part_writes_what_it_measures(tmp_path):
    """As its process does, but for the device and the sizes."""
    path = tmp_path / "lines"
    gpu_parts.run("engine Qwen2.5-0.5B", path, CPU, "no such backend", TINY_SHAPES)
    lines, _ = gpu_lines.read(path)
    failed = {line["words"] for line in lines if line.get("outcome") == "failed"}
    assert failed == {"KeyError: 'no such backend'"}  # each of its cases, and it went on
    path.unlink()
    gpu_parts.run("attention", path, CPU, "reference", TINY_SHAPES, SCALE)
    lines, _ = gpu_lines.read(path)
    assert {line["outcome"] for line in lines if "end" in line} == {"passed"}
    assert len([line for line in lines if "figure" in line]) > 20
    assert lines[-1] == {"finished": True}


def test_the_work_lists_are_those_of_a_step():
    """Of decode steps recorded and not, with a trunk and without: all give the same attention."""
    bench = Bench(CPU, "reference", "tiny", TINY)
    trunk, own = 4 * PAGE, 20
    shared = trunk_tables(5, trunk, own)
    assert len({table[:4] for table in shared}) == 1
    assert len({table[-1] for table in shared}) == 5
    length = trunk + own
    ours = decode_work(bench, shared, length)
    plain = planned(bench, shared, length, 1, share=False)
    assert ours.max_rows > 1
    assert plain.max_rows == 1
    n_pages = max(map(max, shared)) + 2
    check(plain, n_pages, PAGE)
    q = bench.random(5, TINY.heads, TINY.head_dim)
    [[k, v]] = bench.pools(n_pages)
    results = [paged_attention(q, k, v, work, 0.25) for work in (ours, plain)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert len({page for table in separate_tables(3, 200) for page in table}) == 12


def test_the_trunk_is_read_once_or_by_everybody():
    """The three ways that are compared are three ways."""
    bench = Bench(CPU, "reference", "tiny", TINY, 16)
    steps = {how: gpu_attention.trunk_step(bench, how) for how in gpu_attention.TRUNKS}
    rows = {how: work.max_rows for how, (_, work, _) in steps.items()}
    assert rows == {"shared": 4, "plain list": 1, "own pages": 1}
    used = {how: len({p for table in tables for p in table}) for how, (tables, *_) in steps.items()}
    assert used["own pages"] > 3 * used["plain list"] == 3 * used["shared"]
    keys = {how: keys for how, (*_, keys) in steps.items()}
    assert keys == {"shared": 1024 + 4 * 64, "plain list": 4 * 1088, "own pages": 4 * 1088}


def rig(**options):
    sizes = {"max_rows": 4, "longest": 512, "n_pages": 40, "step_tokens": 64, **options}
    return gpu_engine.Rig.make(TINY, CPU, "reference", **sizes)


def test_steps_are_measured_on_a_tiny_shape():
    tiny = rig()
    assert tiny.holds(4, 400)
    assert not tiny.holds(4, 600)
    took = gpu_engine.decode(tiny, 3, 100, steps=3)
    assert took.recordings > 0
    assert took.step > 0
    assert 0 <= took.idle < 1
    assert gpu_engine.decode(tiny, 4, 60, steps=2).step > 0  # all rows are free again
    assert gpu_engine.prefill_ms(tiny, 150, rounds=2) > 0


def test_the_time_without_a_recording_is_idle():
    assert gpu_engine.Decode(step=10.0, recordings=9.0).idle == pytest.approx(0.1)
    assert gpu_engine.Decode(step=10.0, recordings=11.0).idle == 0.0


def test_the_last_recordings_are_those_of_the_step():
    """Forward and sample, once each per step: replaying them is what the idle share is made of."""
    tiny = rig()
    gpu_engine.decode(tiny, 2, 70, steps=2)
    state = tiny.runner._state
    before = state.position.clone()
    assert len(tiny.graphs.last) == 2
    gpu_engine.recorded_ms(tiny, 5)
    moved = (state.position - before).tolist()
    assert sorted(moved)[-2:] == [5, 5]


def test_requests_are_measured_with_and_without_the_cache():
    tiny = rig()
    for reuse in (True, False):
        assert gpu_engine.served(tiny, Workload(6, 70, 5, 4), reuse=reuse) > 0


def test_prompts_share_the_trunk_and_nothing_else():
    work = Workload(40, 64, 30, 1)
    prompts = work.prompts(1)
    assert len({tuple(p[:64]) for p in prompts}) == 1
    assert len({tuple(p[64:]) for p in prompts}) == 40
    assert prompts[0][:64] != work.prompts(2)[0][:64]
    assert all(1 <= token <= 103 for prompt in prompts for token in prompt)


def test_the_cases_of_an_engine(monkeypatch):
    """All of them, on a small rig and small workloads; what does not fit is said."""
    small = {name: Workload(3, 70 if w.trunk else 0, 9, 3) for name, w in
             gpu_shapes.WORKLOADS.items()}  # fmt: skip
    monkeypatch.setattr(gpu_engine, "WORKLOADS", small)
    monkeypatch.setattr(gpu_shapes, "WORKLOADS", small)
    monkeypatch.setattr(gpu_engine, "BATCHES", (1, 32, 40))
    monkeypatch.setattr(gpu_engine, "CONTEXTS", (64, 128))
    monkeypatch.setattr(gpu_engine, "PREFILLS", (100,))
    engine = gpu_engine.EngineCases(CPU, "reference", LARGE, TINY)
    engine.rig = rig(max_rows=40, longest=400, n_pages=150, step_tokens=64)
    made = {f.name: f for case in engine.cases() for f in case.run()}
    assert made[gpu_shapes.decode_name(LARGE, 40, 128)].value == "does not fit the memory"
    assert made[gpu_shapes.decode_name(LARGE, 32, 64)].share > 0
    assert 0 <= made[gpu_shapes.idle_name(LARGE)].value < 100
    assert any(name.endswith("without cache") for name in made)
    assert {f"engine {name}" for name in gpu_shapes.SHAPES} <= set(gpu_parts.PARTS)


class Wrapper:
    """What FlashInfer's wrappers are called with, held against the lengths that it must fit."""

    def __init__(self, workspace, kv_layout, **options):
        assert workspace.dtype is torch.uint8
        assert kv_layout == "HND"
        self.planned = None

    def plan(self, *args, q_data_type, kv_data_type, sm_scale, causal=False):
        *tables, heads, kv_heads, head_dim, page = args
        assert (heads, kv_heads, head_dim, page) == (4, 2, 16, PAGE)
        self.indptr, self.indices, self.last = tables[-3:]
        assert causal == (len(tables) == 4)
        self.rows = int(tables[0][-1]) if causal else len(self.last)

    def run(self, q, pools):
        assert q.shape == (self.rows, 4, 16)
        assert pools[0].shape == pools[1].shape
        assert pools[0].shape[1:] == (2, PAGE, 16)
        assert int(self.indices.max()) < len(pools[0])
        assert int(self.indptr[-1]) == len(self.indices)
        assert 1 <= int(self.last.min()) <= int(self.last.max()) <= PAGE
        return q


def test_flashinfer_is_called_as_its_wrappers_want_it(monkeypatch):
    module = ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = Wrapper
    module.BatchPrefillWithPagedKVCacheWrapper = Wrapper
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    made = figures("flashinfer", scale=16)
    ours = figures("attention")
    named = [name for name in made if not name.endswith("rate")]
    assert {gpu_shapes.theirs(name, gpu_goals.FLASHINFER) for name in ours} >= set(named)
    assert len(named) == 8
    assert gpu_flashinfer.LAYOUT == "HND"


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B"])
def test_the_peer_is_asked_for_what_the_engine_is(name, monkeypatch):
    """Its own code needs a GPU; what it is called with does not."""
    import gpu_peer

    peer = gpu_peer.Peer(name, TINY, "cpu")
    asked = []

    class Model:
        def generate_batch(self, inputs, generation_config, continuous_batching_config,
                           progress_bar, persistent_manager=False):  # fmt: skip
            asked.append((continuous_batching_config, persistent_manager))
            if continuous_batching_config.use_async_batching:
                raise ValueError("not here")
            new = generation_config.max_new_tokens
            return {str(i): Reply([1] * new) for i in range(len(inputs))}

    class Reply:
        def __init__(self, tokens):
            self.generated_tokens = tokens

    monkeypatch.setattr(gpu_peer.Peer, "model", Model())
    cases = list(peer.cases())
    made = [figure for case in cases for figure in case.run()]
    named = [gpu_shapes.workload_name(name, work) for work in gpu_shapes.WORKLOADS]
    assert [f.name for f in made] == [gpu_shapes.theirs(n, gpu_goals.TRANSFORMERS) for n in named]
    assert {f.unit for f in made} == {"tok/s, default options"}  # the fast ones failed, and it says
    assert all(kept for _, kept in asked)
    assert len(asked) == len(named) * (1 + 3)


def test_the_peer_can_be_built():
    import gpu_peer

    model = gpu_peer.Peer("Qwen2.5-0.5B", TINY, "cpu").model
    assert model.config.num_key_value_heads == TINY.kv_heads
    assert callable(model.generate_batch)
