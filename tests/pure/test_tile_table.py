"""Tiles: a short list for each shape, and nothing that is not in it."""

import subprocess
import sys

import pytest

from ramify.kernels.triton.tile_table import (
    AttentionShape,
    Tiles,
    TileTable,
    candidates,
    default_tiles,
)
from ramify.kernels.triton.tiles import Tile

LLAMA = AttentionShape(32, 8, 128, 2, 2, 64)
SHAPES = [
    LLAMA._replace(head_dim=head_dim, pool_bytes=pool_bytes, page_size=page_size)
    for head_dim in (64, 80, 128, 256)
    for pool_bytes in (1, 2)
    for page_size in (5, 16, 32, 64, 128)
]
OTHER = Tiles(Tile(16, 32, 4, 7), Tile(128, 32, 8, 3))


def test_the_default_comes_first_and_lists_are_short():
    for shape in SHAPES:
        for listed, default in zip(candidates(shape), default_tiles(shape), strict=True):
            assert listed[0] == default
            assert len(set(listed)) == len(listed) <= 12


def test_there_is_a_choice_where_engines_run():
    assert all(len(listed) >= 5 for listed in candidates(LLAMA))
    assert all(len(listed) >= 4 for listed in candidates(LLAMA._replace(head_dim=256)))


def test_only_defaults_may_have_tiles_that_lie_in_several_pages():
    for shape in SHAPES:
        for listed in candidates(shape):
            assert all(shape.page_size % tile.keys == 0 for tile in listed[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"query_bytes": 4, "pool_bytes": 4},
        {"pool_bytes": 4},
        {"query_bytes": 4},
        {"head_dim": 256, "pool_bytes": 1},
    ],
)
def test_fp32_and_wide_heads_in_fp8_have_no_choice(change):
    assert all(len(listed) == 1 for listed in candidates(LLAMA._replace(**change)))


def test_many_query_heads_to_a_kv_head_have_no_choice_of_small_tile():
    shape = LLAMA._replace(heads=71, kv_heads=1)
    assert candidates(shape).small == (default_tiles(shape).small,)


def test_a_table_gives_what_was_measured_and_else_the_default():
    table = TileTable({LLAMA: OTHER})
    assert table.tiles_of(LLAMA) == OTHER != default_tiles(LLAMA)
    for other in (LLAMA._replace(heads=16), LLAMA._replace(page_size=128)):
        assert table.tiles_of(other) == default_tiles(other)


@pytest.mark.parametrize(
    ("shape", "tiles", "words"),
    [
        (
            LLAMA,
            OTHER._replace(small=Tile(16, 64, 4, 50)),
            r"small tile \[16, 64, 4, 50, False\] is none",
        ),
        (
            LLAMA,
            OTHER._replace(large=Tile(512, 64, 8, 2)),
            r"large tile \[512, 64, 8, 2, False\] is none",
        ),
        (LLAMA._replace(page_size=16), OTHER, "small tile"),
        (LLAMA._replace(query_bytes=4), OTHER, "small tile"),
        (LLAMA._replace(kv_heads=0), OTHER, "not a shape"),
        (LLAMA._replace(heads=-32), OTHER, "not a shape"),
        (LLAMA._replace(kv_heads=5), OTHER, "not a shape"),
        (LLAMA._replace(pool_bytes=3), OTHER, "in pools 1, 2 or 4"),
    ],
)
def test_other_tiles_are_refused(shape, tiles, words):
    with pytest.raises(ValueError, match=words):
        TileTable({shape: tiles})


def test_tiles_are_known_without_triton():
    """A server starts without it, and says so by itself when its kernels are asked for."""
    code = "import sys, ramify.srt.tuning.store; print([m for m in sys.modules if m == 'triton'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
