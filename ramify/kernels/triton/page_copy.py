"""Pages copied within the pool, and gathered into or scattered from the slots of a tier below.

What is copied is the numbers' bytes, four at a time. In a pool [layers, N, HK, P, D] the first
slots of a page are one run of memory for each layer and head; a whole page is one run for each
layer. Grid: (moves, 2 layers HK) to copy, (moves, 2 layers, runs) to gather or scatter. Each byte
is read once and written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.shapes import check_copies, check_pages
from ramify.kernels.triton.launch import cdiv

WORDS = 1024  # of a run that a program moves at a time


def copy_pages(keys: Tensor, values: Tensor, copies: Tensor) -> None:
    """Copy the first slots of pages into other pages, in every layer.

    keys, values [layers, N, HK, P, D] (changed)   copies [n, 3] int64: source, target, slots
    No source may be the target of another copy: the order is free.
    """
    check_copies(keys, values, copies)
    layers, pages, kv_heads, page_size, _ = keys.shape
    if not len(copies):
        return
    keys, values = keys.view(torch.int32), values.view(torch.int32)
    copy_pages_kernel[(len(copies), 2 * layers * kv_heads)](
        keys,
        values,
        copies,
        pages,
        HK=kv_heads,
        P=page_size,
        ROW=keys.shape[-1],
        BLOCK=WORDS,
    )


def gather_pages(keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor) -> None:
    """Change slots[where[i]] into page pages[i]: keys, then values, of all layers.

    keys, values [layers, N, HK, P, D]   slots [S, 2, layers, HK, P, D] (changed)
    pages, where [n] int64
    """
    _move(keys, values, pages, slots, where, into_slots=True)


def scatter_pages(
    keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor
) -> None:
    """Change page pages[i] of every layer into slots[where[i]]: the reverse of `gather_pages`."""
    _move(keys, values, pages, slots, where, into_slots=False)


def _move(
    keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor, into_slots: bool
) -> None:
    check_pages(keys, values, pages, slots, where)
    if not len(pages):
        return
    keys, values = keys.view(torch.int32), values.view(torch.int32)
    layers, n_pages, *page = keys.shape
    words = torch.Size(page).numel()
    move_pages_kernel[(len(pages), 2 * layers, cdiv(words, WORDS))](
        keys,
        values,
        slots.view(torch.int32),
        pages,
        where,
        layers,
        n_pages,
        PAGE=words,
        INTO_SLOTS=into_slots,
        BLOCK=WORDS,
    )


@triton.jit
def copy_pages_kernel(
    Keys, Values, Copies, n_pages,
    HK: tl.constexpr, P: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    Copy = Copies + tl.program_id(0) * 3
    source, target, slots = tl.load(Copy), tl.load(Copy + 1), tl.load(Copy + 2)
    which = tl.program_id(1).to(tl.int64)
    layer, head = which // (2 * HK), which % HK
    Pool = Keys
    if which // HK % 2 == 1:
        Pool = Values
    Pool += (layer * n_pages * HK + head) * (P * ROW)
    for first in tl.range(0, slots * ROW, BLOCK):
        i = first + tl.arange(0, BLOCK)
        run = tl.load(Pool + source * (HK * P * ROW) + i, mask=i < slots * ROW)
        tl.store(Pool + target * (HK * P * ROW) + i, run, mask=i < slots * ROW)


@triton.jit
def move_pages_kernel(
    Keys, Values, Slots, Pages, Where, layers, n_pages,
    PAGE: tl.constexpr, INTO_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    move, which = tl.program_id(0), tl.program_id(1)
    page, slot = tl.load(Pages + move), tl.load(Where + move)
    layer = (which % layers).to(tl.int64)
    Pool = Keys
    if which >= layers:
        Pool = Values
    i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    InPool = Pool + (layer * n_pages + page) * PAGE + i
    InSlot = Slots + (slot * 2 * layers + which) * PAGE + i
    if INTO_SLOTS:
        tl.store(InSlot, tl.load(InPool, mask=i < PAGE), mask=i < PAGE)
    else:
        tl.store(InPool, tl.load(InSlot, mask=i < PAGE), mask=i < PAGE)
