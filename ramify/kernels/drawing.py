"""What a batch of rows wants of its logits, as tensors: the arguments of two ops.

`adjust_logits` changes the logits of some rows; `sample` draws a token for every row. A row that
wants no change is not listed, so it costs nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.kernels.shapes import check_dense, check_float


@dataclass(frozen=True)
class Adjustments:
    """Penalties, masks and bias for A of the rows, with the bias as E single numbers.

    An entry of `history` is twice the times that the token was generated, plus one if the prompt
    has it. A bias of minus infinity forbids its token. No row and no (row, token) occurs twice.
    """

    rows: Tensor  # [A] int64, of the logits
    history_rows: Tensor  # [A] int32, of `history`; -1: no penalties
    mask_rows: Tensor  # [A] int32, of `mask`; -1: no mask
    repetition: Tensor  # [A] fp32, above 0; 1 changes nothing
    frequency: Tensor  # [A] fp32
    presence: Tensor  # [A] fp32
    history: Tensor  # [requests, V] int32
    mask: Tensor  # [masks, words] int32, as in `mask_logits`
    bias_rows: Tensor  # [E] int64, of the logits
    bias_tokens: Tensor  # [E] int64
    bias: Tensor  # [E] fp32

    def check(self, logits: Tensor) -> None:
        """Raise ValueError unless the sizes and types fit each other and the logits."""
        check_float("logits", logits, 2)
        for name in ("repetition", "frequency", "presence"):
            check_dense(name, getattr(self, name), torch.float32, len(self.rows))
        for name in ("history_rows", "mask_rows"):
            check_dense(name, getattr(self, name), torch.int32, len(self.rows))
        check_dense("rows", self.rows, torch.int64, len(self.rows))
        check_dense("history", self.history, torch.int32, len(self.history), logits.shape[1])
        check_dense("mask", self.mask, torch.int32, *self.mask.shape)
        for name in ("bias_rows", "bias_tokens"):
            check_dense(name, getattr(self, name), torch.int64, len(self.bias))
        check_dense("bias", self.bias, torch.float32, len(self.bias))


@dataclass(frozen=True)
class Draws:
    """How each of the L rows draws its token, as in SamplingParams."""

    temperature: Tensor  # [L] fp32; 0: the likeliest token
    top_k: Tensor  # [L] int32; -1: no limit
    top_p: Tensor  # [L] fp64, above 0, at most 1
    min_p: Tensor  # [L] fp32, 0 to 1
    random: Tensor  # [L] fp64 in [0, 1): the row's own number, from its seed and position

    def check(self, logits: Tensor) -> None:
        """Raise ValueError unless there is one of everything for each row of the logits."""
        check_float("logits", logits, 2)
        for name in ("temperature", "min_p"):
            check_dense(name, getattr(self, name), torch.float32, len(logits))
        for name in ("top_p", "random"):
            check_dense(name, getattr(self, name), torch.float64, len(logits))
        check_dense("top_k", self.top_k, torch.int32, len(logits))
