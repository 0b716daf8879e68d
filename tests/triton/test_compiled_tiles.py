"""Every tile that may take the place of a default compiles without spills, in memory that fits.

For heads of 128 in bf16, which most models have, on every architecture. Wide heads and fp8 pools,
which have lists of their own, on compute capability 9.0 alone: the time of this suite goes into
compiling. Narrower heads have the lists of 128, and need less. Compute capability 8.0 may spill 64
bytes, as it does in the default tile.
"""

from itertools import zip_longest

import pytest
import torch
from compile_only import ARCHITECTURES, SHARED_BYTES, recording, table

from ramify.kernels.dispatch import load_ops
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.tile_table import (
    AttentionShape,
    Tiles,
    TileTable,
    candidates,
    default_tiles,
)
from ramify.kernels.triton.tiles import Tile
from ramify.kernels.work_list import WorkList
from ramify.srt.execution.device import Device
from ramify.srt.tuning.loads import Steps
from ramify.srt.tuning.tuner import in_tiles, why_not

HEADS, KV_HEADS, PAGE = 8, 2, 64
CASES = [(arch, 128, torch.bfloat16) for arch in ARCHITECTURES]
CASES += [(90, 256, torch.bfloat16), (90, 128, FP8)]


def zeros(*sizes):
    return torch.zeros(*sizes, dtype=torch.int32)


def step(attention, head_dim, stored=torch.bfloat16):
    """Some decode rows and a prefill: a small and a large launch."""
    work = WorkList(
        items=zeros(3, 6), rows=zeros(514), positions=zeros(514), pages=zeros(20),
        merge_indptr=zeros(515), merge_index=zeros(0), n_partials=0, max_rows=512, total_rows=514,
    )  # fmt: skip
    q = torch.empty(514, HEADS, head_dim).bfloat16()
    pools = [torch.empty(8, KV_HEADS, PAGE, head_dim).to(stored) for _ in "kv"]
    attention(q, *pools, work, head_dim**-0.5)


@pytest.mark.parametrize(("arch", "head_dim", "stored"), CASES)
def test_every_candidate(arch, head_dim, stored):
    shape = AttentionShape(HEADS, KV_HEADS, head_dim, 2, stored.itemsize, PAGE)
    listed, default = candidates(shape), default_tiles(shape)
    with recording(arch) as launches:
        for small, large in zip_longest(listed.small, listed.large):
            step(in_tiles(Tiles(small or default.small, large or default.large)), head_dim, stored)
    print("\n" + table(launches))
    assert len(launches) == 2 * max(map(len, listed))
    assert max(x.spills for x in launches) <= (64 if arch == 80 else 0)
    assert max(x.shared for x in launches) <= SHARED_BYTES[arch]


def test_a_table_reaches_the_launch():
    """Tiles differ in what they need: that shows which one was launched."""
    shape = AttentionShape(HEADS, KV_HEADS, 128, 2, 2, PAGE)
    tiles = Tiles(candidates(shape).small[2], candidates(shape).large[2])
    shared = {}
    for name, tiles_of in (("default", None), ("tuned", TileTable({shape: tiles}).tiles_of)):
        with recording(90) as launches:
            step(load_ops("triton", tiles_of).paged_attention, 128)
            step(load_ops("triton", tiles_of).paged_attention, 64)  # which was not measured
        shared[name] = [launch.shared for launch in launches]
    assert shared["default"][:2] != shared["tuned"][:2]
    assert shared["default"][0] < shared["tuned"][0]  # seven stages instead of five
    assert shared["default"][1] > shared["tuned"][1]  # half the keys
    assert shared["default"][2:] == shared["tuned"][2:]


def test_a_tile_that_does_not_fit_the_card_is_dropped():
    shape = AttentionShape(HEADS, KV_HEADS, 128, 2, 2, PAGE)
    steps = Steps(shape, Device(torch.device("cpu")), torch.bfloat16, torch.bfloat16)
    ragged = steps.ragged()
    tiles = default_tiles(shape)._replace(small=Tile(16, 64, 4, 30))
    with recording(90):
        reason = why_not(in_tiles(tiles), ragged, torch.zeros_like(ragged.q), [])
    assert reason.startswith("out of resource: shared memory")
