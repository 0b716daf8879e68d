"""A GGUF file's metadata as the config.json that a Hugging Face model of that kind would have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ramify.srt.errors import ModelLoadError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # also SmolLM2 and Mistral
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
LLAMA3_ORIGINAL_LENGTH = 8192
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0


def model_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for a file's metadata. `tensors` maps GGUF names to the reader's tensors.

    Raises ModelLoadError naming what is missing or not supported.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelLoadError(f"GGUF architecture {arch!r} is not supported; supported are {known}")
    own = _Section(metadata, arch)
    if own.get("expert_count"):
        raise ModelLoadError(f"GGUF {arch}.expert_count: mixtures of experts are not supported")
    if "token_embd.weight" not in tensors:
        raise ModelLoadError("the GGUF file has no tensor token_embd.weight")
    hidden, heads = own.need("embedding_length"), own.need("attention.head_count")
    head_dim = own.get("attention.key_length", hidden // heads)
    if own.get("rope.dimension_count", head_dim) != head_dim:
        raise ModelLoadError(f"GGUF {arch}.rope.dimension_count: partial rotation is not supported")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": own.need("feed_forward_length"),
        "num_hidden_layers": own.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _float32(own.need("attention.layer_norm_rms_epsilon")),
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "max_position_embeddings": own.need("context_length"),
        **_rope(own, tensors),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: all the tokens that end a text or a turn."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [metadata.get(f"tokenizer.ggml.{name}") for name in names]
    ends = list(dict.fromkeys(token for token in found if token is not None))
    return {"bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"), "eos_token_id": ends}


class _Section:
    """The keys of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self._metadata = metadata
        self._arch = arch

    def get(self, name: str, default: Any = None) -> Any:
        value = self._metadata.get(f"{self._arch}.{name}", default)
        if isinstance(value, list):
            raise ModelLoadError(f"GGUF {self._arch}.{name}: one value per layer is not supported")
        return value

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ModelLoadError(f"the GGUF file has no key {self._arch}.{name}")
        return value


def _rope(own: _Section, tensors: Mapping[str, Any]) -> dict[str, Any]:
    theta = _float32(own.get("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_theta": theta}
    kind = own.get("rope.scaling.type", "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    if "rope_freqs.weight" in tensors:
        rope["rope_scaling"] = _llama3(np.asarray(tensors["rope_freqs.weight"].data), theta)
    elif kind == "yarn":
        original = own.need("rope.scaling.original_context_length")
        rope["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": _float32(factor),
            "original_max_position_embeddings": original,
        }
    elif kind == "linear" or (kind == "none" and factor not in (0.0, 1.0)):
        rope["rope_scaling"] = {"rope_type": "linear", "factor": _float32(factor)}
    elif kind != "none":
        raise ModelLoadError(
            f"GGUF rope.scaling.type {kind!r} is not supported: none, linear, yarn"
        )
    return rope


def _llama3(divisors: np.ndarray[Any, Any], theta: float) -> dict[str, Any]:
    """Recover Llama 3's four numbers from the divisors [head_dim / 2] that GGUF keeps instead."""
    factor = round(float(divisors.max()), 3)
    half = len(divisors)
    turns = LLAMA3_ORIGINAL_LENGTH * theta ** -(np.arange(half) / half) / (2 * np.pi)
    smooth = np.clip((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-3):
        raise ModelLoadError(
            "GGUF tensor rope_freqs.weight: only the scaling of Llama 3 "
            f"(original length {LLAMA3_ORIGINAL_LENGTH}) is supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_LENGTH,
    }


def _float32(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
