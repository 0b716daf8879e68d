"""Whole pages moved between the pool and slots below it, and copied within it, in plain torch."""

from torch import Tensor

from ramify.kernels.shapes import check_copies, check_pages


def copy_pages(keys: Tensor, values: Tensor, copies: Tensor) -> None:
    """Copy the first slots of pages into other pages, in every layer.

    keys, values [layers, N, HK, P, D] (changed)   copies [n, 3] int64: source, target, slots
    No source may be the target of another copy: the order is free.
    """
    check_copies(keys, values, copies)
    for source, target, slots in copies.tolist():
        for pool in (keys, values):
            pool[:, target, :, :slots] = pool[:, source, :, :slots]


def gather_pages(keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor) -> None:
    """Change slots[where[i]] into page pages[i]: keys, then values, of all layers.

    keys, values [layers, N, HK, P, D]   slots [S, 2, layers, HK, P, D] (changed)
    pages, where [n] int64
    """
    check_pages(keys, values, pages, slots, where)
    for page, slot in zip(pages.tolist(), where.tolist(), strict=True):
        slots[slot, 0], slots[slot, 1] = keys[:, page], values[:, page]


def scatter_pages(
    keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor
) -> None:
    """Change page pages[i] of every layer into slots[where[i]]: the reverse of `gather_pages`."""
    check_pages(keys, values, pages, slots, where)
    for page, slot in zip(pages.tolist(), where.tolist(), strict=True):
        keys[:, page], values[:, page] = slots[slot, 0], slots[slot, 1]
