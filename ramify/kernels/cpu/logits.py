"""Calls of `logits.cpp`."""

from torch import Tensor

from ramify.kernels.cpu.library import library
from ramify.kernels.cpu.threads import threads
from ramify.kernels.shapes import check_mask_logits


def mask_logits(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """logits[rows[i], t] = -inf where bit t of mask[i] is 0, in place."""
    check_mask_logits(logits, rows, mask)
    failed = library()["mask_logits", logits.dtype](
        logits.data_ptr(),
        rows.data_ptr(),
        mask.data_ptr(),
        len(rows),
        len(logits),
        logits.shape[1],
        mask.shape[1],
        threads(),
    )
    if failed:
        raise ValueError(f"rows must be from 0 to {len(logits) - 1}")
