"""The linear of deterministic mode compiles without spills, to one binary for all row counts."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.attention_options import PLAIN
from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.triton.attention import paged_attention
from ramify.kernels.triton.linear import linear
from ramify.kernels.work_list import WorkList


def launched(arch, rows, width, out, dtype=torch.bfloat16, bias=True):
    numbers = torch.zeros(out, dtype=dtype) if bias else None
    weights = PackedLinear(torch.zeros(out, width, dtype=dtype), numbers, width, out)
    with recording(arch) as launches:
        linear(torch.zeros(rows, width, dtype=dtype), weights)
    print("\n" + table(launches))
    (launch,) = launches
    assert launch.spills == 0
    return launch


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), [(4096, 6144), (896, 151_936), (1100, 96)])
def test_a_layers_shapes(width, out, bias, arch):
    launch = launched(arch, 300, width, out, bias=bias)
    assert launch.grid == (5, -(-out // 64), 1)
    if arch == 90:
        assert launch.count("HGMMA") > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types(dtype):
    launched(90, 20, 4096, 4096, dtype)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_binary_for_any_number_of_rows(arch):
    """A number that is 1, or divides by 16, is compiled for by itself unless it is kept out."""
    binaries = [launched(arch, rows, 896, 1152).cubin for rows in (1, 7, 16, 64, 300)]
    assert len(set(binaries)) == 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_binary_for_any_number_of_items(arch, large):
    """Attention of one row an item, as deterministic mode has it: in steps of any size. And of
    many rows, which is compiled once before the first request."""
    binaries = []
    for tokens in (1, 3, 16, 100):
        work = WorkList(
            items=torch.zeros(tokens, 6, dtype=torch.int32),
            rows=torch.zeros(tokens, dtype=torch.int32),
            positions=torch.zeros(tokens, dtype=torch.int32),
            pages=torch.zeros(20, dtype=torch.int32),
            merge_indptr=torch.zeros(tokens + 1, dtype=torch.int32),
            merge_index=torch.zeros(0, dtype=torch.int32),
            n_partials=0,
            max_rows=64 if large else 1,
            total_rows=tokens,
        )
        pools = [torch.empty(8, 2, 64, 128).bfloat16() for _ in range(2)]
        with recording(arch) as launches:
            paged_attention(torch.empty(tokens, 8, 128).bfloat16(), *pools, work, 1.0, PLAIN)
        assert large or launches[0].grid == (tokens, 2, 1)
        binaries.append(launches[-1].cubin)
    assert len(set(binaries)) == 1
