"""The compile-only driver measures a kernel for each architecture, and refuses what cannot fit."""

import pytest
import torch
import triton
import triton.language as tl
from compile_only import ARCHITECTURES, recording, table
from triton.runtime.errors import OutOfResources


@triton.jit
def product_kernel(A, B, C, M: tl.constexpr, K: tl.constexpr):
    i, k = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(A + i[:, None] * K + k[None, :])
    b = tl.load(B + k[:, None] * M + i[None, :])
    tl.store(C + i[:, None] * M + i[None, :], tl.dot(a, b))


def launch(m, k):
    a, b = torch.empty(m, k).bfloat16(), torch.empty(k, m).bfloat16()
    product_kernel[(3, 2)](a, b, torch.empty(m, m), M=m, K=k)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_launches_are_compiled_and_noted(arch):
    with recording(arch) as launches:
        launch(64, 64)
    print("\n" + table(launches))
    (only,) = launches
    assert (only.name, only.grid, only.arch) == ("product_kernel", (3, 2, 1), arch)
    assert only.spills == 0
    assert 16 <= only.registers <= 255
    if arch == 90:
        assert only.count("HGMMA") > 0


def test_spills_are_seen():
    with recording(80) as launches:
        launch(256, 16)
    assert launches[0].spills > 0


def test_too_much_shared_memory_is_refused():
    with recording(90), pytest.raises(OutOfResources):
        launch(128, 2048)
