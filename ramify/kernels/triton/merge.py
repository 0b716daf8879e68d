"""Stage 2 of attention: each token's partial results joined by their log-sums.

    out[t, h] = sum_i 2^(lse_i - lse) partial_i        lse = log2 sum_i 2^lse_i

over the partials i that `merge_index` lists for the token. Grid: (T, HQ), or (T, 1) with all heads
in one program where tokens are many; a token without partials returns at once, its output being
written already. Bytes: 4 (D + 1) of each partial and head. Numerics: fp32, rounded once; partials
that saw nothing have a log-sum of -inf, and weigh nothing.
"""

import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.triton.launch import next_power_of_2
from ramify.kernels.work_list import WorkList

MANY_TOKENS = 1024  # as many programs keep a GPU busy without splitting their heads
PARTS_ELEMENTS = 2048  # of a token's partials that are read at a time


def merge_partials(partial: Tensor, lse: Tensor, work: WorkList, out: Tensor) -> None:
    """Change the rows of `out` whose tokens have partials.

    partial [n, HQ, D] fp32   lse [n, HQ] fp32, in base 2   out [T, HQ, D] (changed)
    """
    tokens, heads, head_dim = out.shape
    if work.n_partials == 0:
        return
    block = next_power_of_2(head_dim)
    per_program = heads if tokens >= MANY_TOKENS else 1
    merge_kernel[(tokens, heads // per_program)](
        partial,
        lse,
        work.merge_indptr,
        work.merge_index,
        out,
        HEADS=per_program,
        HQ=heads,
        D=head_dim,
        BLOCK_D=block,
        PARTS=max(PARTS_ELEMENTS // block, 4),
        num_warps=4,
    )


@triton.jit
def merge_kernel(
    Partial,
    Lse,
    Indptr,
    Index,
    Out,
    HEADS: tl.constexpr,
    HQ: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(Indptr + token), tl.load(Indptr + token + 1)
    if begin == end:
        return
    d = tl.arange(0, BLOCK_D)
    for i in tl.range(0, HEADS):
        head = tl.program_id(1) * HEADS + i
        top = float("-inf")
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for first in tl.range(begin, end, PARTS):
            part = first + tl.arange(0, PARTS)
            listed = part < end
            place = tl.load(Index + part, mask=listed, other=0).to(tl.int64) * HQ + head
            lse = tl.load(Lse + place, mask=listed, other=float("-inf"))
            new_top = tl.maximum(top, tl.max(lse, 0))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            weight = tl.exp2(lse - shift)
            shrink = tl.exp2(top - shift)
            wanted = listed[:, None] & (d < D)[None, :]
            rows = tl.load(Partial + place[:, None] * D + d[None, :], mask=wanted, other=0.0)
            acc = acc * shrink + tl.sum(rows * weight[:, None], 0)
            total = total * shrink + tl.sum(weight, 0)
            top = new_top
        result = acc / tl.where(total > 0, total, 1.0)
        at = (token * HQ + head) * D + d
        tl.store(Out + at, result.to(Out.dtype.element_ty), mask=d < D)
