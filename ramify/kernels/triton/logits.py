"""What is done to logits before a token is drawn: penalties and masks, then single numbers.

    adjust   y = x / rate or x * rate where seen; y -= frequency * count + presence * (count > 0)
             y = -inf where the mask has a 0 bit
    bias     y = x + bias[row, token], or -inf

Bias comes before the mask in the twin and after it here: minus infinity absorbs any bias, so the
numbers are the same, and the dense pass needs no look-up.

Grid    adjust: A rows x V/4096 programs. bias: E/256 programs. Neither is launched for nothing.
Moves   adjust: 2 V numbers, V words of history and V/32 of mask per listed row; nothing for others.
Numbers fp32 inside, rounded once. Rows and tokens outside the logits are left alone, not reported:
        to look would make the host wait.
"""

import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.drawing import Adjustments
from ramify.kernels.shapes import check_mask_logits
from ramify.kernels.triton.launch import cdiv

BLOCK = 4096
NEVER = tl.constexpr(float("-inf"))


@triton.jit
def penalise(x, history, repetition, frequency, presence):
    count = (history >> 1).to(tl.float32)
    scaled = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = tl.where(history != 0, scaled, x)
    x -= frequency * count
    return x - tl.where(count > 0, presence, 0.0)


@triton.jit
def allowed(Mask, mask_row, at, words):
    """Whether the bits of a mask are set; not beyond its last word."""
    word = tl.load(Mask + mask_row * words + at // 32, mask=at // 32 < words, other=0)
    return ((word >> (at % 32)) & 1) != 0


@triton.jit
def width_of(row, n_rows, width):
    """The width of a row, or 0 if there is no such row: then nothing is read or written."""
    return tl.where((row >= 0) & (row < n_rows), width, 0)


# Sizes that differ from step to step are not specialised on: each kernel is compiled once.
@triton.jit(do_not_specialize=["n_rows", "words"])
def adjust_kernel(
    Logits, Rows, HistoryRows, MaskRows, Repetition, Frequency, Presence, History, Mask,
    n_rows, width, words, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = tl.load(Rows + i)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width_of(row, n_rows, width)
    x = tl.load(Logits + row * width + at, mask=inside, other=0.0).to(tl.float32)
    history_row = tl.load(HistoryRows + i).to(tl.int64)
    if history_row >= 0:
        history = tl.load(History + history_row * width + at, mask=inside, other=0)
        rates = tl.load(Repetition + i), tl.load(Frequency + i), tl.load(Presence + i)
        x = penalise(x, history, rates[0], rates[1], rates[2])
    mask_row = tl.load(MaskRows + i).to(tl.int64)
    if mask_row >= 0:
        x = tl.where(allowed(Mask, mask_row, at, words), x, NEVER)
    tl.store(Logits + row * width + at, x.to(Logits.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "words"])
def mask_kernel(Logits, Rows, Mask, n_rows, width, words, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(Rows + i)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    forbidden = (at < width_of(row, n_rows, width)) & (allowed(Mask, i, at, words) == 0)
    never = tl.full([BLOCK], NEVER, tl.float32).to(Logits.dtype.element_ty)
    tl.store(Logits + row * width + at, never, mask=forbidden)


@triton.jit(do_not_specialize=["n", "n_rows"])
def bias_kernel(Logits, Rows, Tokens, Bias, n, n_rows, width, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(Rows + i, mask=i < n, other=-1)
    token = tl.load(Tokens + i, mask=i < n, other=-1)
    bias = tl.load(Bias + i, mask=i < n, other=0.0)
    inside = (row >= 0) & (row < n_rows) & (token >= 0) & (token < width)
    x = tl.load(Logits + row * width + token, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(bias == NEVER, NEVER, x + bias)
    tl.store(Logits + row * width + token, y.to(Logits.dtype.element_ty), mask=inside)


def adjust_logits(logits: Tensor, adjustments: Adjustments) -> None:
    """Change logits [L, V] by repetition, frequency and presence, then bias, then masks."""
    a = adjustments
    a.check(logits)
    n_rows, width = logits.shape
    if len(a.rows) and width:
        adjust_kernel[(len(a.rows), cdiv(width, BLOCK))](
            logits, a.rows, a.history_rows, a.mask_rows, a.repetition, a.frequency, a.presence,
            a.history, a.mask, n_rows, width, a.mask.shape[1], BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    if len(a.bias):
        bias_kernel[(cdiv(len(a.bias), 256),)](
            logits, a.bias_rows, a.bias_tokens, a.bias, len(a.bias), n_rows, width, BLOCK=256
        )


def mask_logits(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """logits[rows[i], t] = -inf where bit t of mask[i] is 0, in place."""
    check_mask_logits(logits, rows, mask)
    n_rows, width = logits.shape
    if len(rows) and width:
        mask_kernel[(len(rows), cdiv(width, BLOCK))](
            logits, rows, mask, n_rows, width, mask.shape[1], BLOCK=BLOCK, num_warps=8
        )
