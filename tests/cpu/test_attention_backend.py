"""Which kernels run is what `attention_backend` says, or a refusal that names it: never others."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from paged_prefill import PagedPrefill, merge_base_2
from test_gpu_options import LLAMA_8B, StandIn

from ramify.kernels.dispatch import load_ops
from ramify.kernels.flashinfer.attention import FlashInferAttention
from ramify.radix_cache.kv_pool import KvPool
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.engine import Engine
from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device
from ramify.srt.workers import attention_backend, building
from ramify.srt.workers.attention_backend import load_kernels, try_out

CPU = Device(torch.device("cpu"))
BF16 = torch.bfloat16
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 96,
    "vocab_size": 211,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_backend": "flashinfer"}, "attention_backend.*on device cpu"),
        ({"device": "cuda", "attention_backend": "cpu"}, "triton, flashinfer, reference on device"),
        (
            {"device": "cuda", "attention_backend": "flashinfer", "cuda_graph_max_bs": 8},
            "cuda_graph_max_bs needs attention_backend triton",
        ),
        (
            {"device": "cuda", "attention_backend": "reference", "cuda_graph_max_bs": 8},
            "with reference no step is recorded",
        ),
        ({"attention_backend": "fa4"}, "attention_backend must be one of auto, cpu, triton, flash"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        check_engine(EngineConfig(**options))


def test_flashinfer_is_for_gpus():
    check_engine(EngineConfig(device="cuda", attention_backend="flashinfer"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_option_selects(backend):
    config = EngineConfig(attention_backend=backend)
    assert load_kernels(config, LLAMA_8B, torch.float32, CPU).backend == backend


@pytest.mark.parametrize("absent", ["flashinfer", "triton"])
def test_without_the_package_it_says_what_to_install(absent, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace())
    monkeypatch.setitem(sys.modules, absent, None)
    for module in [name for name in sys.modules if name.startswith("ramify.kernels.triton")]:
        monkeypatch.delitem(sys.modules, module)
    config = EngineConfig(device="cuda", attention_backend="flashinfer")
    with pytest.raises(ConfigError, match=f"need {absent}.*flashinfer-python.*backend triton"):
        load_kernels(config, LLAMA_8B, BF16, CPU)


def test_a_model_or_a_type_that_does_not_fit_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    config = EngineConfig(device="cuda", attention_backend="flashinfer")
    with pytest.raises(ConfigError, match=r"flashinfer does not fit: .*not in float32.*triton"):
        load_kernels(config, LLAMA_8B, torch.float32, CPU)


# --- with what FlashInfer's documentation promises in its place ----------------------------------


def through_flashinfer(wrappers):
    """The reference's operations, but for attention."""

    def make():
        wrappers.append(PagedPrefill())
        return wrappers[-1]

    own = FlashInferAttention(make, merge_base_2).paged_attention
    reference_ops = vars(load_ops("reference"))
    return SimpleNamespace(**reference_ops | {"backend": "flashinfer", "paged_attention": own})


def test_kernels_are_compiled_before_the_first_request():
    wrappers = []
    pool = KvPool(32, 2, 8, 64, 128, BF16)
    try_out(through_flashinfer(wrappers), LLAMA_8B, pool)
    plans = [plan for wrapper in wrappers for plan in wrapper.plans]
    assert sorted(options["causal"] for _, options in plans) == [False, True]
    for arguments, options in plans:
        assert arguments[4:] == (32, 8, 128, 64)
        assert (options["q_data_type"], options["kv_data_type"]) == (BF16, BF16)


@pytest.mark.parametrize("error", [RuntimeError("Ninja build failed"), OSError("no nvcc")])
def test_a_machine_that_cannot_compile_them_is_told_so(error):
    def fail(*arguments):
        raise error

    ops = SimpleNamespace(backend="flashinfer", paged_attention=fail)
    pool = KvPool(32, 2, 8, 64, 128, BF16)
    with pytest.raises(ConfigError, match=f"FlashInfer cannot make.*{error}.*nvcc and ninja"):
        try_out(ops, LLAMA_8B, pool)


def test_memory_that_runs_out_is_not_called_a_failed_build():
    def fail(*arguments):
        raise torch.OutOfMemoryError("no")

    ops = SimpleNamespace(backend="flashinfer", paged_attention=fail)
    with pytest.raises(torch.OutOfMemoryError):
        try_out(ops, LLAMA_8B, KvPool(32, 2, 8, 64, 128, BF16))


def test_an_engine_runs_through_flashinfer(tmp_path, monkeypatch):
    """Built for a GPU, which the CPU stands for: no step is recorded, the tokens are the same."""
    monkeypatch.setattr(building, "open_device", lambda name: StandIn(torch.device("cpu")))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    prompts = [[*range(1, 90), 100 + i] for i in range(6)]
    greedy = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
    wrappers, told = [], []
    for backend in ("flashinfer", "reference"):
        ops = through_flashinfer(wrappers) if backend == "flashinfer" else load_ops("reference")
        monkeypatch.setattr(attention_backend, "load_ops", lambda *_, ops=ops: ops)
        with Engine(
            f"dummy:{tmp_path / 'tiny.json'}",
            device="cuda",
            attention_backend=backend,
            dtype="bfloat16",
            seed=1,
            mem_fraction_static=0.1,
            max_running_requests=4,
        ) as engine:
            replies = engine.generate(input_ids=prompts, sampling_params=greedy)
            assert engine.server_info()["violations"] == []
        told.append([reply["output_ids"] for reply in replies])
    assert told[0] == told[1]
    tried = [wrapper.plans[0][0][0].tolist() for wrapper in wrappers[:2]]
    assert tried == [[0, 2], [0, 1]], "it was not tried out before the first request"
    assert sum(len(wrapper.plans) for wrapper in wrappers) > 12
