"""What a GPU changes about the options: their defaults, the size of the cache, what is refused."""

import dataclasses
import json
from importlib.util import find_spec

import msgspec
import pytest
import torch

from ramify.frontend_api import cli
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.stamp import kernel_stamp
from ramify.kernels.triton.tile_table import AttentionShape, candidates, default_tiles
from ramify.radix_cache.kv_pool import bytes_per_page
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.engine import Engine
from ramify.srt.errors import ConfigError
from ramify.srt.execution.device import Device, Fetched
from ramify.srt.execution.memory import GIB, pool_pages
from ramify.srt.models.config import ModelConfig
from ramify.srt.tuning.store import keep, tuning_file
from ramify.srt.workers import building
from ramify.srt.workers.attention_backend import load_kernels

BF16 = torch.bfloat16
LLAMA_8B = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
)
PAGE = bytes_per_page(32, 8, 64, 128, BF16)
H200 = 140 * GIB


def on_gpu(**options):
    return EngineConfig(device="cuda", **options)


def test_defaults_follow_the_device_and_what_is_given_wins():
    for name, cpu, gpu, given in (("page_size", 16, 64, 32), ("overlap", False, True, False)):
        assert getattr(EngineConfig(), name) == cpu
        assert getattr(on_gpu(), name) == gpu
        assert getattr(on_gpu(**{name: given}), name) == given
    assert (EngineConfig().kv_cache_gb, on_gpu().kv_cache_gb) == (1.0, None)
    assert on_gpu().chunked_prefill_size > EngineConfig().chunked_prefill_size == 256
    check_engine(EngineConfig())
    check_engine(on_gpu())


def test_options_are_the_same_after_a_journey():
    """As they go to the engine's process, and into a trace."""
    for config in (EngineConfig(), on_gpu(overlap=False)):
        assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config
        assert dataclasses.replace(config) == config


def test_the_cache_gets_what_the_model_leaves_of_its_share():
    free = H200 - 16 * GIB  # the model is loaded
    pages = pool_pages(on_gpu(), LLAMA_8B, BF16, (free, H200))
    assert pages == int(0.88 * H200 - 16 * GIB) // PAGE - 1  # and a page to fill up steps
    assert pages * 64 == pytest.approx(877_000, rel=0.01)
    less = pool_pages(on_gpu(mem_fraction_static=0.5), LLAMA_8B, BF16, (free, H200))
    assert less == pytest.approx(pages - 0.38 * H200 / PAGE, abs=2)


def test_fp8_makes_room_for_twice_as_many_tokens():
    gpu = (H200 - 16 * GIB, H200)
    pages, in_fp8 = (pool_pages(on_gpu(), LLAMA_8B, dtype, gpu) for dtype in (BF16, FP8))
    assert in_fp8 - 2 * pages in (1, 2)  # one page fills up steps, whatever its size


def test_a_size_that_is_given_wins_over_the_share():
    gpu = (H200, H200)
    assert pool_pages(on_gpu(max_total_tokens=6400), LLAMA_8B, BF16, gpu) == 100
    assert pool_pages(on_gpu(kv_cache_gb=2.0), LLAMA_8B, BF16, gpu) == 2 * GIB // PAGE


@pytest.mark.parametrize(
    ("options", "free", "words"),
    [
        ({}, 2 * GIB, r"mem_fraction_static 0.88 leaves no room.*140.00 GiB 2.00 are free.*16.80"),
        ({"kv_cache_gb": 30.0}, 20 * GIB, r"takes 30.01 GiB.*20.00 of the GPU's 140.00 GiB"),
        ({"max_total_tokens": 10**6}, 20 * GIB, r"takes 122.*max_total_tokens"),
    ],
)
def test_what_does_not_fit_is_told_in_numbers(options, free, words):
    with pytest.raises(ConfigError, match=words):
        pool_pages(on_gpu(**options), LLAMA_8B, BF16, (free, H200))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda", "attention_backend": "cpu"}, "attention_backend.*auto, triton"),
        ({"attention_backend": "triton"}, "attention_backend.*auto, cpu, reference on device cpu"),
        ({"disable_cuda_graph": True}, "disable_cuda_graph.*need device cuda"),
        ({"cuda_graph_max_bs": 8}, "cuda_graph_max_bs need device cuda"),
        ({"device": "cuda", "cuda_graph_max_bs": 0}, "cuda_graph_max_bs must be at least 1"),
        ({"device": "cuda", "mem_fraction_static": 1.0}, "mem_fraction_static must be"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype fp8_e4m3 needs device cuda"),
        ({"device": "cuda", "kv_cache_dtype": "fp8"}, "kv_cache_dtype must be .* fp8_e4m3"),
        ({"device": "tpu"}, "device must be one of cpu, cuda"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        check_engine(EngineConfig(**options))


@pytest.mark.model
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_without_a_gpu_the_device_is_refused_in_one_sentence(smollm2):
    with pytest.raises(ConfigError, match="device cuda: no NVIDIA GPU can be used here"):
        Engine("smollm2", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "device cuda: no NVIDIA GPU can be used here"),
        (("--page-size", "0"), "page_size must be at least 1, got 0"),
    ],
)
def test_tuning_without_a_gpu_is_refused_in_one_line(options, words, capsys):
    """Before it looks for the model: that would be fetched in vain."""
    assert cli.main(["tune", "no/such-model", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ramify: {words}")
    assert err.count("\n") == 1


class StandIn(Device):
    """The CPU in the place of a GPU with 1 GiB, none of it taken."""

    is_cuda = True
    name = "Stand-in"
    has_fp8 = False
    free_and_total = (GIB, GIB)

    def upload(self, array):
        return torch.from_numpy(array.copy())

    def fetch(self, tensors):
        return Fetched(tuple(tensor.clone() for tensor in tensors), None)

    def attention_pieces(self, kv_heads):
        return 4


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("card", ["Stand-in", "Another"])
def test_an_engine_uses_the_tiles_that_were_measured_on_its_card(card, tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    shape = AttentionShape(32, 8, 128, 2, 2, 64)
    tiles = default_tiles(shape)._replace(small=candidates(shape).small[1])
    keep(tuning_file(card), card, kernel_stamp(), shape, tiles)
    ops = load_kernels(on_gpu(), LLAMA_8B, BF16, StandIn(torch.device("cpu")))
    (tiles_of,) = ops.paged_attention.args
    assert tiles_of(shape) == (tiles if card == StandIn.name else default_tiles(shape))


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 211,
    "max_position_embeddings": 512,
}


def tiny(folder):
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return f"dummy:{folder / 'tiny.json'}"


def test_an_engine_is_put_together_for_a_gpu(tmp_path, monkeypatch):
    """All but the GPU itself: the options, the size of the pool, the runner, steps ahead."""
    monkeypatch.setattr(building, "open_device", lambda name: StandIn(torch.device("cpu")))
    prompts = [[*range(1, 90), 100 + i] for i in range(6)]
    greedy = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
    told = {}
    for device, options in (("cuda", {"mem_fraction_static": 0.1}), ("cpu", {})):
        if device == "cpu":
            monkeypatch.undo()
        with Engine(
            tiny(tmp_path),
            device=device,
            attention_backend="reference",
            dtype="float32",
            seed=1,
            **options,
        ) as engine:
            replies = engine.generate(input_ids=prompts, sampling_params=greedy)
            info = engine.server_info()
        told[device] = [reply["output_ids"] for reply in replies]
        assert info["violations"] == []
        assert info["device"] == device
    assert told["cuda"] == told["cpu"]


def test_deterministic_is_refused_with_kernels_that_mix_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "open_device", lambda name: StandIn(torch.device("cpu")))
    plain = {"device": "cuda", "attention_backend": "reference"}
    with pytest.raises(
        ConfigError, match=r"deterministic needs .* the Triton kernels: .*reference"
    ):
        Engine(tiny(tmp_path), deterministic=True, **plain)


def test_fp8_is_refused_on_a_gpu_that_has_none(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(building, "open_device", lambda name: StandIn(torch.device("cpu")))
    with pytest.raises(ConfigError, match=r"fp8_e4m3 needs .* 8.9 or above: the Stand-in is older"):
        Engine(tiny(tmp_path), device="cuda", kv_cache_dtype="fp8_e4m3")
