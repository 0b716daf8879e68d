"""Every form of the attention kernels compiles for every architecture: no spills, memory that fits.

With -s a table of registers and shared memory is printed. Where the compiler is known to spill it
is bounded: 64 bytes for compute capability 8.0, which has registers alone to hold a tile's sums.
"""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.shapes import FP8
from ramify.kernels.triton.attention import paged_attention
from ramify.kernels.work_list import WorkList

HEAD_DIMS = (64, 80, 96, 128, 256)
OPTIONS = {"window": AttentionOptions(window=4096), "cap": AttentionOptions(soft_cap=50.0)}


def step(arch, dtype, head_dim, *, group=4, page=64, stored=None, options=PLAIN, large=True):
    """What is launched for some decode rows, a prefill if `large`, and partials to merge."""
    work = WorkList(
        items=torch.zeros(3, 6, dtype=torch.int32),
        rows=torch.zeros(514, dtype=torch.int32),
        positions=torch.zeros(514, dtype=torch.int32),
        pages=torch.zeros(20, dtype=torch.int32),
        merge_indptr=torch.zeros(515, dtype=torch.int32),
        merge_index=torch.zeros(4, dtype=torch.int32),
        n_partials=4,
        max_rows=512 if large else 1,
        total_rows=514,
    )
    q = torch.empty(514, 2 * group, head_dim, dtype=dtype)
    pools = [torch.empty(8, 2, page, head_dim, dtype=stored or dtype) for _ in range(2)]
    with recording(arch) as launches:
        paged_attention(q, *pools, work, head_dim**-0.5, options)
    print(f"\nD={head_dim} G={group} P={page} {dtype} {stored or ''} {options}\n{table(launches)}")
    assert [x.name for x in launches] == [
        "attention_kernel", *(["attention_kernel"] if large else []), "merge_kernel"]  # fmt: skip
    if dtype is not torch.float32:
        assert max(x.spills for x in launches) <= (64 if arch == 80 else 0)
    return launches


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bf16(arch, head_dim):
    small, large, _ = step(arch, torch.bfloat16, head_dim)
    if arch == 90:
        assert small.count("HMMA") > 0
        assert small.count("LDGSTS") > 0  # keys arrive while others are multiplied
        assert large.count("HGMMA") > 0


@pytest.mark.parametrize("head_dim", [80, 256])
def test_fp16(head_dim):
    step(90, torch.float16, head_dim)


@pytest.mark.parametrize("head_dim", [128, 256])
def test_fp8_pools(head_dim):
    """The type needs compute capability 8.9."""
    step(90, torch.bfloat16, head_dim, stored=FP8)


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option):
    step(90, torch.bfloat16, 128, options=OPTIONS[option])


@pytest.mark.parametrize("page", [16, 128])
def test_pages_that_are_not_tiles(page):
    step(90, torch.bfloat16, 128, page=page)


@pytest.mark.parametrize("group", [1, 32, 71])
def test_groups(group):
    step(90, torch.bfloat16, 64, group=group, large=group > 1)


def test_fp32():
    """For tests on a GPU, so it must be right, not fast: it may spill."""
    step(90, torch.float32, 128)
