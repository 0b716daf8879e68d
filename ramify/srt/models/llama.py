"""The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2/2.5 (QKV bias), Qwen3 (QK norm).

They differ in switches of `ModelConfig` only, so one class serves them all.
"""

import torch
from torch import Tensor

from ramify.kernels.ops import Ops
from ramify.radix_cache.kv_pool import KvPool
from ramify.srt.attention.inputs import StepInputs
from ramify.srt.layers.decoder_layer import DecoderLayer, LayerShape
from ramify.srt.layers.rotary import cos_sin_table
from ramify.srt.models.config import ModelConfig
from ramify.srt.models.rope import inverse_frequencies
from ramify.srt.weights.reader import WeightSource


class LlamaModel:
    """A decoder: token ids to hidden states, and hidden states to logits."""

    def __init__(
        self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.ops = ops
        self.dtype = dtype
        self.weight_bytes = 0
        read = _Reader(config, source, dtype)
        self.embedding = read("model.embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = [_layer(config, read, ops, i) for i in range(config.n_layers)]
        self.norm = read("model.norm", config.hidden_size)
        self.head = ops.pack_linear(
            self.embedding
            if config.tie_embeddings
            else read("lm_head", config.vocab_size, config.hidden_size),
            None,
        )
        frequencies, scale = inverse_frequencies(config.rope, config.head_dim)
        self.cos_sin = cos_sin_table(frequencies, scale, config.context_length)
        self.weight_bytes = read.n_bytes

    @property
    def rows_are_independent(self) -> bool:
        """True when no op but attention lets a row's bits depend on the rows computed beside it."""
        return self.ops.rows_apart or (self.ops.backend == "cpu" and self.head.layout == "panels")

    def forward(self, inputs: StepInputs, pool: KvPool) -> Tensor:
        """Final hidden states before the last norm, [T, C]; keys and values go into the pool."""
        residual = self.embedding[inputs.token_ids]
        x = torch.zeros_like(residual)
        for layer, kv in zip(self.layers, pool.layers, strict=True):
            x = layer.forward(self.ops, x, residual, inputs, self.cos_sin, kv)
        return residual.add_(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, C] -> fp32 [rows, vocabulary]."""
        normed = self.ops.rms_norm(hidden, self.norm, self.config.rms_eps)
        return self.ops.linear(normed, self.head).float()


class _Reader:
    """Reads tensors in the wanted number type, and counts their bytes."""

    def __init__(self, config: ModelConfig, source: WeightSource, dtype: torch.dtype) -> None:
        self.config = config
        self.source = source
        self.dtype = dtype
        self.n_bytes = 0

    def __call__(self, name: str, *shape: int, kind: str = "weight") -> Tensor:
        # cloned: a view would keep the whole memory-mapped file in use
        tensor = self.source.read(f"{name}.{kind}", shape).to(self.dtype, copy=True)
        self.n_bytes += tensor.nbytes
        return tensor

    def fused(self, prefix: str, parts: dict[str, int], n_in: int) -> Tensor:
        """The parts' weights stacked along the output axis: one product instead of several."""
        return torch.cat([self(f"{prefix}.{name}", n, n_in) for name, n in parts.items()])

    def fused_bias(self, prefix: str, parts: dict[str, int]) -> Tensor:
        return torch.cat([self(f"{prefix}.{name}", n, kind="bias") for name, n in parts.items()])


def _layer(config: ModelConfig, read: _Reader, ops: Ops, number: int) -> DecoderLayer:
    hidden, inter, dim = config.hidden_size, config.intermediate_size, config.head_dim
    at = f"model.layers.{number}"
    q_size, kv_size = config.n_heads * dim, config.n_kv_heads * dim
    qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    attention = f"{at}.self_attn"
    return DecoderLayer(
        shape=LayerShape(config.n_heads, dim, config.rms_eps),
        attention_norm=read(f"{at}.input_layernorm", hidden),
        qkv=ops.pack_linear(
            read.fused(attention, qkv, hidden),
            read.fused_bias(attention, qkv) if config.qkv_bias else None,
        ),
        q_norm=read(f"{attention}.q_norm", dim) if config.qk_norm else None,
        k_norm=read(f"{attention}.k_norm", dim) if config.qk_norm else None,
        o=ops.pack_linear(
            read(f"{attention}.o_proj", hidden, q_size),
            read(f"{attention}.o_proj", hidden, kind="bias") if config.o_bias else None,
        ),
        mlp_norm=read(f"{at}.post_attention_layernorm", hidden),
        gate_up=ops.pack_linear(
            read.fused(f"{at}.mlp", {"gate_proj": inter, "up_proj": inter}, hidden), None
        ),
        down=ops.pack_linear(read(f"{at}.mlp.down_proj", hidden, inter), None),
    )
