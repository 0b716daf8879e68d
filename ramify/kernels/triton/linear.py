"""The linear layer whose rows do not depend on each other in any bit: for deterministic mode.

    y[t, n] = sum_k x[t, k] weight[n, k] + bias[n]

The vendor's products are faster, but choose their tiles, and so the order of a sum, by the number
of rows. Here one kind of tile serves any number, and a sum goes from the first k to the last.

Grid    T/BM x N/BN programs; those that read the same weights are neighbours.
Moves   the weight once for every BM rows, x once for every BN outputs.
Numbers products of the numbers as they are, sums in fp32, the bias in fp32, rounded once.
Bits    nothing that a program computes with is made from T, which only bounds what is read and
        stored: it is not specialised on, so that there is one binary for all T.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.shapes import check_linear
from ramify.kernels.triton.launch import cdiv, precision


class Sides(NamedTuple):
    """Rows, outputs and steps along k of a tile, and what its program is given."""

    rows: int
    outputs: int
    k: int
    warps: int
    stages: int


# By bytes of a number. 64 rows is what Hopper's products need; more would be wasted in decoding.
SIDES = {2: Sides(64, 64, 64, 4, 4), 4: Sides(32, 32, 32, 4, 2)}


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight^T + bias, each row as it would be alone.   x [T, in] -> [T, out]"""
    check_linear(x, packed.weight, packed.in_features)
    rows, (out, width) = len(x), packed.weight.shape
    y = x.new_empty(rows, out)
    if y.numel() == 0:
        return y
    sides = SIDES[x.dtype.itemsize]
    linear_kernel[(cdiv(rows, sides.rows), cdiv(out, sides.outputs))](
        x, packed.weight, y if packed.bias is None else packed.bias, y, rows,
        OUT=out, WIDTH=width, HAS_BIAS=packed.bias is not None, PRECISION=precision(x),
        BM=sides.rows, BN=sides.outputs, BK=sides.k,
        num_warps=sides.warps, num_stages=sides.stages,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    X, W, Bias, Y, rows,
    OUT: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    Tile = X + m.to(tl.int64)[:, None] * WIDTH + k[None, :]
    Weight = W + n.to(tl.int64)[None, :] * WIDTH + k[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for first in tl.range(0, WIDTH, BK):
        some, every = (m < rows)[:, None], (n < OUT)[None, :]
        if WIDTH % BK != 0:
            some = some & (first + k < WIDTH)[None, :]
            every = every & (first + k < WIDTH)[:, None]
        x = tl.load(Tile + first, mask=some, other=0.0)
        w = tl.load(Weight + first, mask=every, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(Bias + n, mask=n < OUT, other=0.0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * OUT + n[None, :]
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=(m < rows)[:, None] & (n < OUT)[None, :])
