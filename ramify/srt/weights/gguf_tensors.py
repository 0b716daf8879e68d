"""A GGUF file's tensors as bfloat16 safetensors files under Hugging Face's names.

GGUF's architecture `llama` keeps the rows of the query and key projections in another order, the
two halves of a head's rotary dimension interleaved: its row 2i + j of a head is Hugging Face's row
j * half + i. `_halves` puts them back.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ramify.srt.errors import ModelLoadError
from ramify.srt.weights.safetensors_writer import BFloat16Tensor, write_sharded

Array = np.ndarray[Any, Any]
READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DERIVED = ("rope_freqs.weight",)  # said by the config already


def write_weights(tensors: Mapping[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Write every tensor to `folder`. `config` is the one made from the same file.

    Raises ModelLoadError naming the first tensor whose name or number type is not supported.
    """
    write_sharded(list(_renamed(tensors, config)), folder)


def _renamed(tensors: Mapping[str, Any], config: dict[str, Any]) -> Iterator[BFloat16Tensor]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    interleaved = config["model_type"] == "llama"
    for name, tensor in tensors.items():
        if name in DERIVED:
            continue
        if tensor.tensor_type.name not in READABLE:
            raise ModelLoadError(
                f"GGUF tensor {name} is {tensor.tensor_type.name}; "
                f"readable are {', '.join(READABLE)}"
            )
        role = name.split(".")[-2]
        n_heads = heads.get(role, 0) if interleaved else 0
        shape = tuple(int(n) for n in reversed(tensor.shape))  # GGUF counts from the innermost
        yield BFloat16Tensor(hf_name(name), shape, _Reading(tensor, shape, n_heads))


class _Reading:
    """A tensor that is dequantised when it is written, one at a time."""

    def __init__(self, tensor: Any, shape: tuple[int, ...], n_heads: int) -> None:
        self._tensor = tensor
        self._shape = shape
        self._n_heads = n_heads

    def __call__(self) -> Array:
        """float32 values of the tensor's shape."""
        values = gguf.dequantize(self._tensor.data, self._tensor.tensor_type)
        values = values.astype(np.float32, copy=False).reshape(self._shape)
        return _halves(values, self._n_heads) if self._n_heads else values


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor. Raises ModelLoadError for one we do not know."""
    parts = name.split(".")
    match parts:
        case ["blk", layer, role, kind] if layer.isdigit() and role in INNER:
            return f"model.layers.{layer}.{INNER[role]}.{kind}"
        case [role, kind] if role in OUTER:
            return f"{OUTER[role]}.{kind}"
    raise ModelLoadError(f"GGUF tensor {name} has no place in a model that is supported")


def _halves(rows: Array, n_heads: int) -> Array:
    """Undo the interleaving of [n_heads * head_dim, ...] rows."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
