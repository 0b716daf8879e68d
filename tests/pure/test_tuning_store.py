"""Measured tiles on disk: kept, found again, and never trusted."""

import json
import logging
import stat
from importlib.util import find_spec

import pytest

from ramify.kernels.triton.stamp import kernel_stamp
from ramify.kernels.triton.tile_table import AttentionShape, Tiles, default_tiles
from ramify.kernels.triton.tiles import Tile
from ramify.srt.tuning.store import Unusable, keep, measured_tiles, read, tuning_file

CARD, STAMP = "NVIDIA H200", "0123456789abcdef"
LLAMA = AttentionShape(32, 8, 128, 2, 2, 64)
QWEN = AttentionShape(14, 2, 64, 2, 2, 64)
with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
OTHER = Tiles(Tile(16, 32, 4, 7), Tile(128, 32, 8, 3))


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    return tuning_file(CARD)


def test_a_file_has_the_name_of_its_card(file, tmp_path):
    assert file == tmp_path / "tuning" / "NVIDIA_H200.json"
    assert tuning_file("../../x: A/100 (80GB)").parent == tmp_path / "tuning"
    assert tuning_file("../../x: A/100 (80GB)").name == "x_A_100_80GB.json"
    assert tuning_file("///").name == "card.json"


def test_without_a_file_there_is_nothing(file):
    assert read(file, CARD, STAMP).measured == {}


def test_what_is_kept_is_found_again_beside_other_shapes(file):
    keep(file, CARD, STAMP, LLAMA, OTHER)
    keep(file, CARD, STAMP, QWEN, default_tiles(QWEN))
    assert read(file, CARD, STAMP).measured == {LLAMA: OTHER, QWEN: default_tiles(QWEN)}
    keep(file, CARD, STAMP, LLAMA, default_tiles(LLAMA))
    assert read(file, CARD, STAMP).measured[LLAMA] == default_tiles(LLAMA)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("card", "stamp"), [("NVIDIA H100", STAMP), (CARD, "another")])
def test_measurements_of_others_are_not_used_and_are_replaced(file, card, stamp):
    keep(file, card, stamp, LLAMA, OTHER)
    with pytest.raises(Unusable, match="other kernels or on another card: tune again"):
        read(file, CARD, STAMP)
    keep(file, CARD, STAMP, QWEN, default_tiles(QWEN))
    assert list(read(file, CARD, STAMP).measured) == [QWEN]


def changed(entry=(), tile=(), **top):
    """What `keep` writes, with changes."""
    shape = LLAMA._asdict()
    made = {"shape": shape, "small": {**OTHER.small._asdict(), **dict(tile)}}
    made |= {"large": OTHER.large._asdict(), **dict(entry)}
    return {"version": 1, "card": CARD, "kernels": STAMP, "attention": [made], **top}


def test_changed_writes_what_keep_writes(file):
    keep(file, CARD, STAMP, LLAMA, OTHER)
    assert json.loads(file.read_text()) == changed()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not what `ramify tune` writes"),
        ("{", "not what `ramify tune` writes"),
        ("\xff", "not what `ramify tune` writes"),
        ("[1, 2]", "not what `ramify tune` writes"),
        (changed(attention=None), "not what `ramify tune` writes"),
        (changed(extra=1), "unknown field `extra`"),
        (changed(tile={"depth": 1}), "unknown field `depth`"),
        (changed(tile={"keys": "64"}), r"`int`, got `str` - at `\$.attention\[0\].small.keys`"),
        (changed(tile={"keys": 1.5}), "`int`, got `float`"),
        (changed(entry={"small": None}), r"\$.attention\[0\].small"),
        (changed(version=2), "tune again"),
        (changed(tile={"keys": 4096}), r"cannot be used.*small tile \[16, 4096, 4, 7, False\]"),
        (changed(tile={"stages": -1}), r"cannot be used.*small tile \[16, 32, 4, -1, False\]"),
        (changed(entry={"shape": {**LLAMA._asdict(), "kv_heads": 0}}), "cannot be used.*shape"),
    ],
)
def test_a_file_that_is_not_right_is_not_used(file, text, words):
    file.parent.mkdir()
    file.write_bytes((text if isinstance(text, str) else json.dumps(text)).encode("latin-1"))
    with pytest.raises(Unusable, match=words):
        read(file, CARD, STAMP)


@with_triton
def test_an_engine_goes_on_with_the_defaults_and_says_so_once(file, caplog):
    file.parent.mkdir()
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert measured_tiles(CARD)(LLAMA) == default_tiles(LLAMA)
    (line,) = caplog.messages
    assert line.startswith(f"attention runs in its default tiles: {file} ")


@with_triton
def test_a_file_that_cannot_be_read_is_told(file, caplog):
    file.mkdir(parents=True)
    assert measured_tiles(CARD)(LLAMA) == default_tiles(LLAMA)
    assert "cannot be read: Is a directory" in caplog.text


@with_triton
def test_a_cache_folder_that_cannot_be_used_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "file" / "cache"))
    assert measured_tiles(CARD)(LLAMA) == default_tiles(LLAMA)
    assert "the cache folder" in caplog.text


@with_triton
def test_measured_tiles_are_those_of_these_kernels(file, caplog):
    keep(file, CARD, kernel_stamp(), LLAMA, OTHER)
    assert measured_tiles(CARD)(LLAMA) == OTHER
    assert measured_tiles(CARD)(QWEN) == default_tiles(QWEN)
    assert caplog.messages == []
