"""Tiles that come through tensor descriptors: where they can, and what code that makes."""

import pytest
import torch
from compile_only import recording, table
from steps import in_large_tile, make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.launch import compute_capability
from ramify.kernels.triton.tiles import Tile, can_describe, large_tile, with_descriptors

DESCRIBED = Tile(128, 64, 8, 3, descriptors=True)


@pytest.mark.parametrize("capability", [90, 100, 120])
@pytest.mark.parametrize("page", [64, 128])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_descriptors_can_bring_tiles_that_lie_in_one_page(capability, page, head_dim):
    assert can_describe(DESCRIBED, capability, page, head_dim)


@pytest.mark.parametrize(
    ("capability", "page", "head_dim"),
    [
        (80, 64, 128),  # no such hardware
        (89, 64, 128),
        (90, 16, 128),  # a tile of several pages
        (90, 96, 128),
        (90, 64, 96),  # sides must be powers of two
        (90, 64, 8),  # and not be filled up for a product
    ],
)
def test_and_no_others(capability, page, head_dim):
    assert not can_describe(DESCRIBED, capability, page, head_dim)


def large_launch(arch, tile, head_dim=128, *, page=64, stored=None, options=PLAIN):
    """What is launched in large tiles for a prefill beside a decode row."""
    step = make_step([(70, 1), (90, 33)], 8, 2, head_dim, torch.bfloat16, page=page, stored=stored)
    with recording(arch) as launches:
        assert compute_capability() == arch
        step.run(in_large_tile(tile), options)
    print(f"\n{tile} D={head_dim} P={page} {stored or ''} {options}\n{table(launches)}")
    small, large = launches
    assert small.count("UTMALDG") == 0
    return large


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("arch", [90, 100])
def test_tiles_come_by_the_hardwares_copies(arch, head_dim, more):
    tile = with_descriptors(large_tile(head_dim, 2))
    tile = tile._replace(stages=tile.stages - 1 + more)
    large = large_launch(arch, tile, head_dim)
    assert large.count("UTMALDG") >= 4  # keys and values, in both loops
    assert large.spills == 0
    assert large.count("HGMMA" if arch == 90 else "UTCHMMA") > 0
    # all that is left of copies by pointers: page numbers, if they come ahead
    assert large.count("LDGSTS") <= (10 if more else 0)


@pytest.mark.parametrize("option", [{"window": 4096}, {"soft_cap": 50.0}])
def test_options(option):
    large = large_launch(90, DESCRIBED, options=AttentionOptions(**option))
    assert large.count("UTMALDG") >= 4
    assert large.spills == 0


@pytest.mark.parametrize("page", [64, 128])
def test_fp8_pools(page):
    large = large_launch(90, DESCRIBED, page=page, stored=FP8)
    assert large.count("UTMALDG") >= 4
    assert large.spills == 0


def test_other_cards_and_other_pages_take_pointers():
    for arch, page in ((80, 64), (90, 16)):
        large = large_launch(arch, DESCRIBED._replace(stages=2), page=page)
        assert large.count("UTMALDG") == 0
        assert large.count("LDGSTS") > 0


def test_tiles_take_pointers_unless_they_say_otherwise():
    large = large_launch(90, large_tile(128, 2))
    assert large.count("UTMALDG") == 0
