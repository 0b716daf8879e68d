"""The public table: every operation of a model step, with its formula and shapes.

`load_ops` in `dispatch` fills it with the implementations of one backend. Letters: see `shapes`.
All arithmetic is in fp32 whatever the type of the tensors; results are rounded once unless said.
Arguments of the wrong size or type raise ValueError.
"""

from typing import Protocol

import torch
from torch import Tensor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.quantised_linear import Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.work_list import WorkList


class Ops(Protocol):
    """One backend's functions. Values only: a call's result depends on its arguments alone."""

    backend: str
    rows_apart: bool  # no op but attention lets a row's bits depend on the rows beside it

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """The weight in the layout that `linear` reads fastest. Done once, at load.

        weight [out, in]   bias [out] or None
        """

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x @ weight^T + bias.

        x [T, in] -> [T, out]
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """round(x / sqrt(mean(x^2) + eps)) * weight: rounded before and after the weight.

        x [T, C]   weight [C] -> [T, C]
        """

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rms_norm(residual + x), and changes residual into residual + x in place.

        x [T, C]   residual [T, C] (changed)   weight [C] -> [T, C]
        """

    def rope_write_kv(
        self,
        qkv: Tensor,
        positions: Tensor,
        slots: Tensor,
        cos_sin: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        heads: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Tensor:
        """The rotated queries; writes the rotated keys and the values into their pool slots.

        rotate(x) = x * [cos cos] + [-x_high x_low] * [sin sin]   at the token's position;
        with q_norm, k_norm each head goes through rms_norm over D first.

        qkv [T, (HQ + 2 HK) D]: queries, keys, values     heads = HQ
        positions [T] int32     slots [T] int32 or int64: page * P + slot in page
        cos_sin [max position, D] fp32: D/2 cosines, D/2 sines
        k_pool, v_pool [N, HK, P, D] (changed)     q_norm, k_norm [D] or None
        k_scale, v_scale: an fp8 pool gets x / scale
        -> [T, HQ, D]
        """

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, with silu(x) = x / (1 + exp(-x)).

        gate_up [T, 2 I]: gate, up -> [T, I]
        """

    def paged_attention(
        self,
        q: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        work: WorkList,
        scale: float,
        options: AttentionOptions = PLAIN,
    ) -> Tensor:
        """softmax(scale * q k^T) v over the keys that the work list gives to each token.

        Query head h reads K/V head h // G. Keys after the token's own position are not seen.

        q [T, HQ, D]   k_pool, v_pool [N, HK, P, D] -> [T, HQ, D]
        """

    def mask_logits(self, logits: Tensor, rows: Tensor, mask: Tensor) -> None:
        """logits[rows[i], t] = -inf where bit t % 32 of mask[i, t // 32] is 0, in place.

        What a mask is too short for is masked too. The other rows stay as they are.

        logits [L, V] (changed)   rows [M] int64   mask [M, W] int32
        """

    def adjust_logits(self, logits: Tensor, adjustments: Adjustments) -> None:
        """Change the listed rows of logits by penalties, then bias, then masks, in place.

        seen:        x = x / repetition if x > 0 else x * repetition
        then:        x -= frequency * count;  x -= presence * (count > 0);  x += bias
        masked out:  x = -inf

        logits [L, V] (changed)
        """

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """A token per row, drawn by its own random number; -1 where no logit is above -inf.

        Temperature, then top_k, top_p of what is left, min_p relative to the likeliest.

        logits [L, V] -> [L] int64
        """

    def silu_mul_fp8(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        """quantise_rows(silu_mul(gate_up)).

        gate_up [T, 2 I] -> [T, I] e4m3, [T] fp32
        """

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x ~ value * scale, with scale = max |x| / 448 over the row, or 1 for a row of zeros.

        x [T, K] -> [T, K] e4m3, [T] fp32
        """

    def linear_fp8_rows(
        self, value: Tensor, scale: Tensor, packed: Fp8Rows, dtype: torch.dtype
    ) -> Tensor:
        """(value * scale) @ (weight * weight scale)^T + bias, rounded to dtype.

        value [T, in] e4m3   scale [T] fp32 -> [T, out]
        """

    def linear_fp8_blocks(self, x: Tensor, packed: Fp8Blocks) -> Tensor:
        """x @ weight^T + bias, with x taken to fp8 by 128 columns of a row at a time.

        x [T, in] -> [T, out]
        """

    def linear_int4(self, x: Tensor, packed: Int4Linear) -> Tensor:
        """x @ weight^T + bias, with the weight widened and rounded to the type of x.

        x [T, in] -> [T, out]
        """

    def route_experts(self, logits: Tensor, top: int, renormalise: bool) -> tuple[Tensor, Tensor]:
        """The X = `top` experts of the largest softmax, and their shares, the likeliest first.

        With renormalise the shares of a token sum to 1.

        logits [T, experts] -> [T, X] fp32, [T, X] int32
        """

    def moe_mlp(
        self, x: Tensor, gate_up: Tensor, down: Tensor, shares: Tensor, experts: Tensor
    ) -> Tensor:
        """The sum over a token's experts of share * down[e] silu_mul(gate_up[e] x).

        Rounded after each product and after silu_mul, and once after the sum.

        x [T, C]   gate_up [experts, 2 I, C]   down [experts, C, I]
        shares [T, X] fp32   experts [T, X] int32, from `route_experts` -> [T, C]
        """
