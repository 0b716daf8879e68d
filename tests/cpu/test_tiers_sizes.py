"""How large the tiers are, and which engines may share what lies in them."""

import dataclasses
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import save_file

from ramify.radix_cache.kv_pool import bytes_per_page
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError, ModelLoadError
from ramify.srt.execution.memory import GIB, disk_pages, host_slots, pool_pages
from ramify.srt.models.config import ModelConfig
from ramify.srt.weights.fingerprint import fingerprint
from ramify.srt.weights.source import ModelFolder

MODEL = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
    }
)
BF16 = torch.bfloat16
PAGE = bytes_per_page(30, 3, 16, 64, BF16)


def config(**options):
    return EngineConfig(**options)


def test_without_options_there_are_no_tiers():
    assert host_slots(config(), MODEL, BF16) == 0
    assert disk_pages(config(), MODEL, BF16) == 0


def test_host_memory_holds_what_fits():
    assert host_slots(config(host_cache_gb=1), MODEL, BF16) == GIB // PAGE
    assert host_slots(config(host_cache_gb=1, disk_cache_gb=9), MODEL, BF16) == GIB // PAGE
    assert host_slots(config(host_cache_gb=PAGE / GIB), MODEL, BF16) == 1


def test_a_disk_alone_gets_a_staging_area():
    assert host_slots(config(disk_cache_gb=1), MODEL, BF16) == (64 << 20) // PAGE
    large = config(disk_cache_gb=100, page_size=256)
    assert host_slots(large, MODEL, torch.float32) == 32


def test_page_files_take_no_more_than_the_budget():
    pages = disk_pages(config(disk_cache_gb=1), MODEL, BF16)
    on_disk = PAGE + 4096  # a header and a checksum need a block more
    assert pages == GIB // on_disk


@pytest.mark.parametrize(
    ("option", "size"),
    [("host_cache_gb", host_slots), ("disk_cache_gb", disk_pages), ("kv_cache_gb", pool_pages)],
)
def test_a_budget_under_one_page_names_the_option(option, size):
    with pytest.raises(ConfigError, match=f"{option} must be at least 0.*one page of 16 tokens"):
        size(config(**{option: 0.9 * PAGE / GIB}), MODEL, BF16)


@pytest.fixture
def model(tmp_path):
    """A model of two files, each larger than what is sampled of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    torch.manual_seed(0)
    long_header = {"about": "x" * 20_000}
    for name in ("a", "b"):
        save_file({name: torch.randn(3 << 20)}, folder / f"{name}.safetensors", long_header)
    return ModelFolder("m", folder)


FACTS = {
    "device": "cpu",
    "dtype": "bfloat16",
    "kv_dtype": "bfloat16",
    "page_size": 16,
    "backend": "cpu",
    "deterministic": False,
    "seed": 0,
}


def of(model, **facts):
    return fingerprint(model, **{**FACTS, **facts})


def test_it_is_the_same_for_a_copy_made_at_another_time(model, tmp_path):
    shutil.copytree(model.path, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (0, 0))
    assert of(model) == of(ModelFolder("other name", tmp_path / "copy"))
    assert len(of(model)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"device": "a GPU"},
        {"dtype": "float32"},
        {"kv_dtype": "float8_e4m3fn"},
        {"page_size": 32},
        {"backend": "reference"},
        {"deterministic": True},
    ],
    ids=str,
)
def test_it_changes_with_whatever_changes_a_page(model, change):
    assert of(model) != of(model, **change)


def test_a_seed_is_nothing_to_a_real_model(model):
    assert of(model) == of(model, seed=1)


def change_byte(path, at):
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("at", [0, 12, 3000, 10_000, -1])
@pytest.mark.parametrize("name", ["a", "b"])
def test_it_changes_with_the_header_and_both_ends_of_every_file(model, name, at):
    before = of(model)
    change_byte(model.path / f"{name}.safetensors", at)
    assert of(model) != before


def test_it_changes_with_a_size_that_nothing_else_tells(model):
    path = model.path / "a.safetensors"
    path.write_bytes(bytes(3 << 20))
    before = of(model)
    path.write_bytes(bytes((3 << 20) + 1))
    assert of(model) != before


def test_it_changes_with_any_megabyte_of_the_weights(model):
    before = of(model)
    path = model.path / "b.safetensors"
    whole = path.read_bytes()
    for at in range(0, len(whole), 1 << 20):
        path.write_bytes(whole[:at] + bytes(1 << 20) + whole[at + (1 << 20) :])
        assert of(model) != before
    path.write_bytes(whole)
    assert of(model) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_it_changes_with_the_files_beside_the_weights(model, name):
    before = of(model)
    with (model.path / name).open("a") as file:
        file.write(" ")
    assert of(model) != before


def test_exchanged_files_are_another_model(model):
    before = of(model)
    a, b, c = (model.path / f"{name}.safetensors" for name in "abc")
    a.rename(c), b.rename(a), c.rename(b)
    assert of(model) != before


def test_a_small_file_counts_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    model = ModelFolder("m", tmp_path)
    seen = {of(model)}
    for at in range((tmp_path / "model.safetensors").stat().st_size):
        change_byte(tmp_path / "model.safetensors", at)
        seen.add(of(model))
    assert len(seen) == at + 2


def test_a_dummy_model_is_its_config_and_its_seed(model):
    dummy = dataclasses.replace(model, dummy=True)
    assert len({of(model), of(dummy), of(dummy, seed=1)}) == 3
    before = of(dummy)
    (model.path / "a.safetensors").unlink()
    assert of(dummy) == before


def test_a_missing_config_is_a_model_error(tmp_path):
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read: No such file"):
        of(ModelFolder("m", tmp_path))


@pytest.mark.model
def test_the_embedded_model_takes_no_time(smollm2):
    """Under 50 ms, as every start with a disk tier pays for it; twice that, on a busy machine."""
    of(smollm2)
    began = time.monotonic()
    of(smollm2)
    assert time.monotonic() - began < 0.1
