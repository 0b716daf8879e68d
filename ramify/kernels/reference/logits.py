"""What is done to logits before a token is drawn, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.shapes import check_mask_logits

WORD = 32


def mask_logits(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """logits[rows[i], t] = -inf where bit t of mask[i] is 0, in place."""
    check_mask_logits(logits, rows, mask)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(logits):
        raise ValueError(f"rows must be from 0 to {len(logits) - 1}")
    width = logits.shape[1]
    bits = (mask[:, :, None] >> torch.arange(WORD, device=mask.device, dtype=torch.int32)) & 1
    allowed = bits.flatten(1)[:, :width].bool()
    allowed = F.pad(allowed, (0, width - allowed.shape[1]))
    logits[rows] = logits[rows].masked_fill(~allowed, float("-inf"))
