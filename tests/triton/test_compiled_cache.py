"""The kernels that write the pools compile without spills, and move sixteen bytes at a time."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.shapes import FP8
from ramify.kernels.triton.page_copy import copy_pages, gather_pages, scatter_pages
from ramify.kernels.triton.rope_cache import rope_write_kv


def assert_sound(launches, names):
    print("\n" + table(launches))
    assert [x.name for x in launches] == names
    assert [x.spills for x in launches] == [0] * len(names)


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rope(arch, head_dim):
    tokens = torch.zeros(3, dtype=torch.int32)
    qkv = torch.empty(3, (32 + 2 * 8) * head_dim).bfloat16()
    pools = [torch.empty(4, 8, 64, head_dim).bfloat16() for _ in range(2)]
    norm = torch.empty(head_dim).bfloat16()
    with recording(arch) as launches:
        rope_write_kv(qkv, tokens, tokens.long(), torch.empty(9, head_dim), *pools, 32, norm, norm)
        if arch >= 90:
            narrow = [pool.to(FP8) for pool in pools]
            rope_write_kv(qkv, tokens, tokens, torch.empty(9, head_dim), *narrow, 32)
    assert_sound(launches, ["rope_write_kv_kernel"] * (2 if arch >= 90 else 1))
    assert launches[0].grid == (3, 6, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_pages(arch):
    keys, values = torch.empty(2, 32, 9, 8, 64, 128).bfloat16()
    slots = torch.empty(3, 2, 32, 8, 64, 128).bfloat16()
    pages = torch.zeros(3, dtype=torch.int64)
    with recording(arch) as launches:
        copy_pages(keys, values, torch.zeros(2, 3, dtype=torch.int64))
        gather_pages(keys, values, pages, slots, pages)
        scatter_pages(keys, values, pages, slots, pages)
    assert_sound(launches, ["copy_pages_kernel", "move_pages_kernel", "move_pages_kernel"])
    if arch == 90:
        assert all(x.count("LDG.E.128") and x.count("STG.E.128") for x in launches)
