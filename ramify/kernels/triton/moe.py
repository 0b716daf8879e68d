"""A mixture-of-experts MLP: routing, sorting tokens by expert, grouped products, weighted sum.

An assignment a = token * X + place is one of a token's X experts. Assignments are sorted by expert
into blocks of BM rows that belong to one expert each; a block's spare rows hold the number `size`,
one past the last assignment:

    expert   |------ 0 ------|-- 2 --|      blocks | a a a a | a a a - | a a - - |
                                            owner       0         0         2        -1 ...

The sort is stable and the products of a row do not depend on its block, so a token gets the same
bits in any batch of the same block size. Nothing waits for the host: as many programs are launched
as there can be blocks, and those without an owner return at once.

Grid    route: T/BT programs. count, place: E programs each, over all assignments.
        product: blocks x N/BN programs.   weighted sum: T x C/1024 programs.
Moves   product: the weights of an expert once per block of its rows; rows and results once.
Numbers softmax and all sums in fp32; results of both products rounded to the type of x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.reference.moe import check_moe, check_route
from ramify.kernels.triton.activation import silu_mul
from ramify.kernels.triton.launch import cdiv, next_power_of_2, precision

ROUTE_NUMBERS = 4096  # logits in a program of `route`
CHUNK = 1024
SUM_BLOCK = 1024
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def route_kernel(
    Logits, Shares, Experts, tokens, n_experts, TOP: tl.constexpr, RENORMALISE: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    expert = tl.arange(0, BE)
    inside = (token < tokens)[:, None] & (expert < n_experts)[None, :]
    at = token[:, None] * n_experts + expert[None, :]
    x = tl.load(Logits + at, mask=inside, other=NEVER).to(tl.float32)
    x = tl.where((token < tokens)[:, None], x, 0.0)
    weights = tl.exp(x - tl.max(x, 1)[:, None])
    total = tl.sum(weights, 1)
    if RENORMALISE:
        total = tl.zeros([BT], tl.float32)
        left = tl.where(expert[None, :] < n_experts, weights, -1.0)
        for _ in range(TOP):
            top = tl.max(left, 1)
            first = tl.min(tl.where(left == top[:, None], expert[None, :], BE), 1)
            left = tl.where(expert[None, :] == first[:, None], -1.0, left)
            total += top
    left = tl.where(expert[None, :] < n_experts, weights, -1.0)
    for place in range(TOP):
        top = tl.max(left, 1)
        first = tl.min(tl.where(left == top[:, None], expert[None, :], BE), 1)
        left = tl.where(expert[None, :] == first[:, None], -1.0, left)
        tl.store(Shares + token * TOP + place, top / total, mask=token < tokens)
        tl.store(Experts + token * TOP + place, first, mask=token < tokens)


@triton.jit
def count_kernel(Experts, Counts, size, CHUNK: tl.constexpr):
    expert = tl.program_id(0)
    count = tl.zeros([CHUNK], tl.int32)
    for start in tl.range(0, size, CHUNK):
        at = start + tl.arange(0, CHUNK)
        count += (tl.load(Experts + at, mask=at < size, other=-1) == expert).to(tl.int32)
    tl.store(Counts + expert, tl.sum(count, 0))


@triton.jit
def place_kernel(
    Experts, Counts, Sorted, Owners, size, n_experts,
    BM: tl.constexpr, BE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write one expert's assignments in order, spare rows after them, and whose its blocks are."""
    expert = tl.program_id(0)
    other = tl.arange(0, BE)
    counts = tl.load(Counts + other, mask=other < n_experts, other=0)
    blocks = (counts + BM - 1) // BM
    first = tl.sum(tl.where(other < expert, blocks, 0), 0)
    mine = tl.sum(tl.where(other == expert, blocks, 0), 0)
    written = first * BM
    for start in tl.range(0, size, CHUNK):
        at = start + tl.arange(0, CHUNK)
        here = tl.load(Experts + at, mask=at < size, other=-1) == expert
        rank = tl.cumsum(here.to(tl.int32), 0) - 1
        tl.store(Sorted + written + rank, at, mask=here)
        written += tl.sum(here.to(tl.int32), 0)
    spare = written + tl.arange(0, BM)
    tl.store(Sorted + spare, tl.full([BM], 0, tl.int32) + size, mask=spare < (first + mine) * BM)
    for block in tl.range(first, first + mine):
        tl.store(Owners + block, expert)


@triton.jit
def product_kernel(
    X, W, Y, Sorted, Owners, size, out, width, DIVIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Y[a] = W[expert of a] X[a // DIVIDE] for the assignments of one block."""
    block = tl.program_id(0)
    expert = tl.load(Owners + block).to(tl.int64)
    if expert < 0:
        return
    a = tl.load(Sorted + block * BM + tl.arange(0, BM)).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = (a // DIVIDE)[:, None] * width + k[None, :]
    w_at = (expert * out + n)[None, :] * width + k[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for start in tl.range(0, width, BK):
        inside = start + k < width
        x = tl.load(X + x_at + start, mask=(a < size)[:, None] & inside[None, :], other=0.0)
        w = tl.load(W + w_at + start, mask=(n < out)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    at = a[:, None] * out + n[None, :]
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=(a < size)[:, None] & (n < out)[None, :])


@triton.jit
def weighted_sum_kernel(X, Shares, Y, width, TOP: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    for place in range(TOP):
        a = token * TOP + place
        x = tl.load(X + a * width + at, mask=at < width, other=0.0).to(tl.float32)
        y += tl.load(Shares + a) * x
    tl.store(Y + token * width + at, y.to(Y.dtype.element_ty), mask=at < width)


def route_experts(logits: Tensor, top: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The `top` experts of the largest softmax, the lower one first among equals.

    logits [T, E] -> shares [T, X] fp32, experts [T, X] int32: the likeliest first
    """
    check_route(logits, top)
    tokens, n_experts = logits.shape
    shares = logits.new_empty(tokens, top, dtype=torch.float32)
    experts = logits.new_empty(tokens, top, dtype=torch.int32)
    be = next_power_of_2(n_experts)
    bt = max(ROUTE_NUMBERS // be, 1)
    if tokens:
        route_kernel[(cdiv(tokens, bt),)](
            logits, shares, experts, tokens, n_experts, TOP=top, RENORMALISE=renormalise,
            BT=bt, BE=be,
        )  # fmt: skip
    return shares, experts


def sort_by_expert(experts: Tensor, n_experts: int, bm: int) -> tuple[Tensor, Tensor]:
    """Assignments in blocks of one expert each, and the expert of each block, -1 after the last.

    experts [T, X] int32 -> [blocks * bm] int32, [blocks] int32
    """
    size = experts.numel()
    blocks = min(size, cdiv(size, bm) + n_experts)  # no expert starts a block without a row
    counts = experts.new_empty(n_experts)
    ordered, owners = experts.new_empty(blocks * bm), experts.new_full((blocks,), -1)
    count_kernel[(n_experts,)](experts, counts, size, CHUNK=CHUNK)
    place_kernel[(n_experts,)](
        experts, counts, ordered, owners, size, n_experts, BM=bm,
        BE=next_power_of_2(n_experts), CHUNK=CHUNK,
    )  # fmt: skip
    return ordered, owners


def moe_mlp(x: Tensor, gate_up: Tensor, down: Tensor, shares: Tensor, experts: Tensor) -> Tensor:
    """The sum over a token's experts of share * down(silu_mul(gate_up(x))).   [T, C] -> [T, C]"""
    check_moe(x, gate_up, down, shares, experts)
    (tokens, channels), top, n_experts = x.shape, experts.shape[1], len(gate_up)
    y = torch.empty_like(x)
    if tokens == 0 or channels == 0:
        return y
    bm = min(max(next_power_of_2(cdiv(tokens * top, n_experts)), 16), 128)
    blocks = sort_by_expert(experts, n_experts, bm)
    middle = silu_mul(_grouped(x, gate_up, *blocks, experts.numel(), top, bm))
    parts = _grouped(middle, down, *blocks, experts.numel(), 1, bm)
    weighted_sum_kernel[(tokens, cdiv(channels, SUM_BLOCK))](
        parts, shares, y, channels, TOP=top, BLOCK=SUM_BLOCK
    )
    return y


def _grouped(
    x: Tensor, weight: Tensor, ordered: Tensor, owners: Tensor, size: int, divide: int, bm: int
) -> Tensor:
    """weight[expert] x for each assignment.   x [size / divide, in] -> [size, out]"""
    _, out, width = weight.shape
    y = x.new_empty(size, out)
    bn = 128 if bm >= 64 else 64
    product_kernel[(len(owners), cdiv(out, bn))](
        x, weight, y, ordered, owners, size, out, width, DIVIDE=divide, PRECISION=precision(x),
        BM=bm, BN=bn, BK=64, num_warps=8 if bm == 128 else 4, num_stages=3,
    )  # fmt: skip
    return y
