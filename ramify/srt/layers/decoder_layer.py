"""One layer of a Llama-family decoder, fused: one QKV product, one gate-up product."""

from dataclasses import dataclass

from torch import Tensor

from ramify.kernels.ops import Ops
from ramify.kernels.packed_linear import PackedLinear
from ramify.srt.attention.inputs import StepInputs


@dataclass(frozen=True)
class LayerShape:
    """What a layer must know besides its weights."""

    n_heads: int
    head_dim: int
    rms_eps: float


@dataclass(frozen=True)
class DecoderLayer:
    """Weights of one layer and its forward pass.

    residual += x; x = norm(residual); q = rope(x Wqkv), keys and values into the pool
    x = attention(q) Wo; residual += x; x = norm(residual); x = (silu(x Wg) * x Wu) Wd
    """

    shape: LayerShape
    attention_norm: Tensor
    qkv: PackedLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear

    def forward(
        self,
        ops: Ops,
        x: Tensor,
        residual: Tensor,
        inputs: StepInputs,
        cos_sin: Tensor,
        kv: tuple[Tensor, Tensor],
    ) -> Tensor:
        """The layer's contribution, not yet added: x [T, C] -> [T, C]; `residual` is changed."""
        shape = self.shape
        x = ops.add_rms_norm(x, residual, self.attention_norm, shape.rms_eps)
        q = ops.rope_write_kv(
            ops.linear(x, self.qkv),
            inputs.positions,
            inputs.slots,
            cos_sin,
            *kv,
            shape.n_heads,
            self.q_norm,
            self.k_norm,
            shape.rms_eps,
        )
        x = ops.paged_attention(q, *kv, inputs.work, shape.head_dim**-0.5)
        x = ops.linear(x.view(x.shape[0], -1), self.o)
        x = ops.add_rms_norm(x, residual, self.mlp_norm, shape.rms_eps)
        return ops.linear(ops.silu_mul(ops.linear(x, self.gate_up)), self.down)
