"""Reading tensors by name: shapes are checked, and nothing outside the folder is opened."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ramify.srt.errors import ModelLoadError
from ramify.srt.weights.dummy import DummySource
from ramify.srt.weights.reader import open_source
from ramify.srt.weights.safetensors import INDEX, SafetensorsSource
from ramify.srt.weights.source import ModelFolder

WEIGHT = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)


@pytest.fixture
def single(tmp_path):
    save_file({"a.weight": WEIGHT}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_tensor_comes_in_its_own_number_type(single):
    source = open_source(ModelFolder("m", single))
    got = source.read("a.weight", (2, 3))
    assert torch.equal(got, WEIGHT)
    assert got.dtype == torch.bfloat16
    assert source.has("a.weight")
    assert not source.has("b.weight")
    assert source.total_bytes == (single / "model.safetensors").stat().st_size


def test_a_wrong_shape_names_the_tensor_and_both_shapes(single):
    with pytest.raises(ModelLoadError, match=r"a\.weight.*\[2, 3\].*\[3, 2\]"):
        SafetensorsSource(single).read("a.weight", (3, 2))


def test_a_missing_tensor_is_named(single):
    with pytest.raises(ModelLoadError, match=r"no tensor b\.weight.*\[4\]"):
        SafetensorsSource(single).read("b.weight", (4,))


def write_index(folder, places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_shards_are_found_by_their_index(tmp_path):
    save_file({"a": WEIGHT}, tmp_path / "x.safetensors")
    save_file({"b": WEIGHT + 1}, tmp_path / "y.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    source = SafetensorsSource(tmp_path)
    assert torch.equal(source.read("b", (2, 3)), WEIGHT + 1)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", 5])
def test_an_index_may_only_name_files_of_its_folder(tmp_path, name):
    write_index(tmp_path, {"a": name})
    with pytest.raises(ModelLoadError, match="not a file of its own folder"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ModelLoadError, match="not an index"):
        SafetensorsSource(tmp_path)


def test_a_listed_shard_that_is_missing_is_named(tmp_path):
    write_index(tmp_path, {"a": "x.safetensors"})
    with pytest.raises(ModelLoadError, match=r"x\.safetensors"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no safetensors"),
        (["pytorch_model.bin"], "pickled"),
        (["consolidated.00.pth"], "pickled"),
        (["a.safetensors", "b.safetensors"], "no model"),
        (["model.safetensors"], "cannot be read"),
    ],
)
def test_folders_without_readable_weights_are_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelLoadError, match=said):
        SafetensorsSource(tmp_path)


def test_dummy_weights_depend_on_seed_and_name_only():
    one, other = DummySource(seed=1), DummySource(seed=1)
    other.read("something.else", (4, 4))
    a = one.read("a.weight", (64, 64))
    assert torch.equal(a, other.read("a.weight", (64, 64)))
    assert not torch.equal(a, one.read("b.weight", (64, 64)))
    assert not torch.equal(a, DummySource(seed=2).read("a.weight", (64, 64)))
    assert a.float().std() == pytest.approx(0.02, rel=0.1)


def test_dummy_norms_are_ones_and_biases_zeros(tmp_path):
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    source = open_source(ModelFolder("d", tmp_path, dummy=True))
    assert torch.equal(source.read("model.norm.weight", (3,)), torch.ones(3))
    assert torch.equal(source.read("q_proj.bias", (3,)), torch.zeros(3))
    assert source.has("anything")
    assert source.total_bytes == 24
