"""A token per row in two launches, without sorting: filters and draw are searches for a threshold.

    weight = exp(x / temperature - its maximum)         greedy: the first maximum of x
    no filters   the first token at which the running sum of weights passes random * total
    filters      the same over the kept tokens, likeliest first, the lower id first among equals

The bits of a weight, a float in [0, 1], are an integer of the same order: its key. Everything
that is asked about a row's ranking is a threshold on keys, found by halving their range:

    keys   0 |- not kept -|- kept -------------|-- drawn before --| 1.0
                     boundary key           drawn key
    top_k  the largest key with k tokens at or above it
    top_p  the largest key whose weights at or above it reach the share
    draw   the key at which the weights above it first leave random * kept mass uncovered

Of the tokens that share the boundary key, so many are kept as are wanted, lower ids first. min_p is
itself a threshold. A halving ends early when a single token is left between its bounds.

Grid    blocks: L x V/2048 programs: maximum, its token and sum of weights of each block.
        pick: L programs. Greedy and unfiltered rows read the blocks' numbers and at most one block.
Moves   blocks: V numbers per row. pick: filtered rows read the blocks whose maximum reaches the
        threshold, up to 30 times per search (from the second-level cache), three searches at most.
        After a few steps of a search that is a block or two, unless the row is flat.
Numbers weights in fp32 and their sums in fp64, so that the order of summing does not show. The CPU
        sampler divides by the sum first and rounds once more, and the GPU's exp is 2 ulp off; so
        tokens differ where random * total falls within about 1e-6 of a boundary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.drawing import Draws
from ramify.kernels.triton.launch import cdiv, next_power_of_2

BLOCK = 2048
NEVER = tl.constexpr(float("-inf"))
LARGEST = tl.constexpr(3e38)
TOP_KEY = tl.constexpr(0x3F800000)  # of weight 1.0
BY_COUNT = tl.constexpr(0)  # the kinds of goal: fewer tokens than this above the key,
BY_MASS = tl.constexpr(1)  # less weight than this,
BY_DRAW = tl.constexpr(2)  # at most this weight


@triton.jit
def scaled(Row, at, width, temperature):
    """Some logits of a row over its temperature; minus infinity for NaN and beyond the row."""
    x = tl.load(Row + at, mask=at < width, other=NEVER).to(tl.float32)
    x = tl.where(x == x, x, NEVER)
    return tl.minimum(tl.div_rn(x, temperature), LARGEST)


@triton.jit
def key_of(x, top):
    """The key of a scaled logit: the bits of its weight."""
    return tl.exp(x - top).to(tl.int32, bitcast=True)


@triton.jit
def weight_of(key):
    return key.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def blocks_kernel(
    Logits, Temperature, Top, Token, Sum, width, n_blocks, BLOCK: tl.constexpr
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(Temperature + row)
    at = block * BLOCK + tl.arange(0, BLOCK)
    x = scaled(Logits + row * width, at, width, tl.where(temperature > 0, temperature, 1.0))
    top = tl.max(x, 0)
    weight = tl.exp(x - tl.where(top == NEVER, 0.0, top))
    tl.store(Top + row * n_blocks + block, top)
    tl.store(Token + row * n_blocks + block, tl.min(tl.where(x == top, at, width), 0))
    tl.store(Sum + row * n_blocks + block, tl.sum(weight.to(tl.float64), 0))


@triton.jit
def next_block(block_keys, i, after, key):
    """The next block in which a token has a larger key; a number beyond them all if there is none.

    So a pass over a row costs as many steps as there are such blocks, mostly one or two.
    """
    beyond = block_keys.shape[0]
    return tl.min(tl.where((i > after) & (block_keys > key), i, beyond), 0)


@triton.jit
def above(Row, block_keys, i, width, temperature, top, key, BLOCK: tl.constexpr):
    """(how many tokens have a larger key, the sum of their weights)."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float64)
    block = next_block(block_keys, i, -1, key)
    while block < block_keys.shape[0]:
        at = block * BLOCK + tl.arange(0, BLOCK)
        keys = key_of(scaled(Row, at, width, temperature), top)
        count += (keys > key).to(tl.int32)
        mass += tl.where(keys > key, weight_of(keys), 0.0)
        block = next_block(block_keys, i, block, key)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def next_key(Row, block_keys, i, width, temperature, top, key, BLOCK: tl.constexpr):
    """The smallest key of a token that is larger than this one."""
    smallest = tl.full([BLOCK], TOP_KEY, tl.int32)
    block = next_block(block_keys, i, -1, key)
    while block < block_keys.shape[0]:
        at = block * BLOCK + tl.arange(0, BLOCK)
        keys = key_of(scaled(Row, at, width, temperature), top)
        smallest = tl.minimum(smallest, tl.where(keys > key, keys, TOP_KEY))
        block = next_block(block_keys, i, block, key)
    return tl.min(smallest, 0)


@triton.jit
def nth_with_key(Row, block_keys, i, width, temperature, top, key, n, BLOCK: tl.constexpr):
    """The n-th token, from 0, with exactly this key; the last one if there are fewer."""
    token = -1
    block = next_block(block_keys, i, -1, key - 1)
    while (block < block_keys.shape[0]) & (n >= 0):
        at = block * BLOCK + tl.arange(0, BLOCK)
        same = (key_of(scaled(Row, at, width, temperature), top) == key).to(tl.int32)
        passed = tl.cumsum(same, 0) <= n + 1
        token = tl.maximum(token, tl.max(tl.where((same == 1) & passed, at, -1), 0))
        n -= tl.sum(same, 0)
        block = next_block(block_keys, i, block, key - 1)
    return token


@triton.jit
def search(
    Row, block_keys, i, width, temperature, top, low, low_count, goal,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The smallest key above `low` that meets the goal: (it, tokens above it, their weight).

    What is above TOP_KEY always meets it, what is above `low` does not; low_count tokens at most
    are. Where rounding breaks that promise it is the smallest key above `low`.
    """
    high = tl.full((), TOP_KEY, tl.int32)
    high_count = tl.full((), 0, tl.int32)
    while (high - low > 1) & (low_count - high_count > 1):
        middle = low + (high - low) // 2
        count, mass = above(Row, block_keys, i, width, temperature, top, middle, BLOCK)
        if KIND == BY_COUNT:
            met = count < goal
        elif KIND == BY_MASS:
            met = mass < goal
        else:
            met = mass <= goal
        high = tl.where(met, middle, high)
        high_count = tl.where(met, count, high_count)
        low = tl.where(met, low, middle)
        low_count = tl.where(met, low_count, count)
    key = next_key(Row, block_keys, i, width, temperature, top, low, BLOCK)
    count, mass = above(Row, block_keys, i, width, temperature, top, key, BLOCK)
    return key, count, mass


@triton.jit
def draw_filtered(
    Row, block_keys, i, mass, width, temperature, top, top_k, top_p, min_p, random,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The drawn token. Kept are the keys above `low`, but of the key `edge` only `ties` tokens.

    `mass` is what is kept: at first all. Searches start where their goal cannot yet be met: at the
    k-th largest of the blocks' maxima, and at the weight that all tokens could have and still be
    less than top_p leaves out.
    """
    low = tl.full((), 0, tl.int32)
    count = tl.full((), 0, tl.int32) + width
    edge, ties = low, count
    if (top_k >= 0) & (top_k < width):
        maxima = tl.sort(block_keys, descending=True)
        low = tl.maximum(tl.max(tl.where(i == top_k - 1, maxima, 0), 0) - 1, 0)
        edge, over, mass = search(
            Row, block_keys, i, width, temperature, top, low, count, top_k, BY_COUNT, BLOCK
        )
        low = edge - 1
        count, _ = above(Row, block_keys, i, width, temperature, top, low, BLOCK)
        ties = tl.minimum(top_k, count) - over
        mass += ties.to(tl.float64) * weight_of(edge)
    if top_p < 1.0:
        goal = top_p * mass
        left_out = (0.5 * (mass - goal) / width).to(tl.float32)
        low = tl.maximum(low, left_out.to(tl.int32, bitcast=True))
        key, over, mass = search(
            Row, block_keys, i, width, temperature, top, low, count, goal, BY_MASS, BLOCK
        )
        low = key - 1
        count, _ = above(Row, block_keys, i, width, temperature, top, low, BLOCK)
        most = tl.where(key == edge, ties, count - over)
        ties = tl.ceil((goal - mass) / weight_of(key)).to(tl.int32)
        ties = tl.minimum(tl.maximum(ties, 1), most)
        edge = key
        mass += ties.to(tl.float64) * weight_of(key)
    if min_p.to(tl.int32, bitcast=True) > edge:
        low = min_p.to(tl.int32, bitcast=True) - 1
        edge, ties = low, 0
        count, mass = above(Row, block_keys, i, width, temperature, top, low, BLOCK)
    target = random * mass
    key, over, mass = search(
        Row, block_keys, i, width, temperature, top, low, count, target, BY_DRAW, BLOCK
    )
    n = tl.maximum(((target - mass) / weight_of(key)).to(tl.int32), 0)
    n = tl.where(key == edge, tl.minimum(n, ties - 1), n)
    return nth_with_key(Row, block_keys, i, width, temperature, top, key, n, BLOCK)


@triton.jit
def first_past(weights, at, target):
    """The first place at which the running sum passes the target, at most the last weight > 0."""
    passed = tl.sum((tl.cumsum(weights, 0) <= target).to(tl.int32), 0)
    return tl.minimum(passed, tl.max(tl.where(weights > 0, at, 0), 0))


@triton.jit
def draw_plain(Row, sums, i, mass, width, temperature, top, random, BLOCK: tl.constexpr):
    """The drawn token: first its block, by the blocks' sums, then its place there."""
    target = random * mass
    block = first_past(sums, i, target)
    target = tl.maximum(target - tl.sum(tl.where(i < block, sums, 0.0), 0), 0.0)
    at = tl.arange(0, BLOCK)
    weights = weight_of(key_of(scaled(Row, block * BLOCK + at, width, temperature), top))
    return block * BLOCK + first_past(weights, at, target)


@triton.jit
def pick_kernel(
    Logits, Temperature, TopK, TopP, MinP, Random, Top, Token, Sum, Out, width, n_blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    Row, i = Logits + row * width, tl.arange(0, BLOCKS)
    tops = tl.load(Top + row * n_blocks + i, mask=i < n_blocks, other=NEVER)
    top = tl.max(tops, 0)
    temperature, random = tl.load(Temperature + row), tl.load(Random + row)
    top_k, top_p, min_p = tl.load(TopK + row), tl.load(TopP + row), tl.load(MinP + row)
    if top == NEVER:
        token = tl.full((), -1, tl.int32)
    elif temperature == 0:
        first = tl.min(tl.where(tops == top, i, BLOCKS), 0)
        token = tl.load(Token + row * n_blocks + first)
    else:
        sums = tl.load(Sum + row * n_blocks + i, mask=i < n_blocks, other=0.0)
        sums *= tl.exp(tops - top).to(tl.float64)
        mass = tl.sum(sums, 0)
        if (top_k < 0) & (top_p >= 1.0) & (min_p <= 0.0):
            token = draw_plain(Row, sums, i, mass, width, temperature, top, random, BLOCK)
        else:
            token = draw_filtered(
                Row, key_of(tops, top), i, mass, width, temperature, top, top_k, top_p, min_p,
                random, BLOCK,
            )  # fmt: skip
    tl.store(Out + row, token.to(tl.int64))


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """A token per row, -1 where no logit is above minus infinity.   [L, V] -> [L] int64"""
    return sample_in_blocks(logits, draws, BLOCK)


def sample_in_blocks(logits: Tensor, draws: Draws, block: int) -> Tensor:
    """`sample` with another size of block than is fast: for tests of many small blocks."""
    draws.check(logits)
    d, (rows, width) = draws, logits.shape
    n_blocks = cdiv(width, block)
    tokens = logits.new_full((rows,), -1, dtype=torch.int64)
    if tokens.numel() == 0 or width == 0:
        return tokens
    top = logits.new_empty(rows, n_blocks, dtype=torch.float32)
    token = logits.new_empty(rows, n_blocks, dtype=torch.int32)
    total = logits.new_empty(rows, n_blocks, dtype=torch.float64)
    blocks_kernel[(rows, n_blocks)](
        logits, d.temperature, top, token, total, width, n_blocks, BLOCK=block, num_warps=8
    )
    pick_kernel[(rows,)](
        logits, d.temperature, d.top_k, d.top_p, d.min_p, d.random, top, token, total, tokens,
        width, n_blocks, BLOCK=block, BLOCKS=next_power_of_2(n_blocks), num_warps=8,
        maxnreg=128,  # else the assembler of the A100 takes 64 and spills
    )  # fmt: skip
    return tokens
