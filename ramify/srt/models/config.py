"""What the runtime needs to know of a model, read from Hugging Face's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramify.srt.errors import ModelLoadError
from ramify.srt.models.rope import RopeConfig

ARCHITECTURES = {  # by model_type, for configs that leave `architectures` out
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
DTYPES = ("bfloat16", "float16", "float32")
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
MISTRAL_WINDOW = 4096  # what a Mistral config means that does not name a window
QWEN3_HEAD_DIM = 128


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and options of a decoder of the Llama family.

    `context_length` is the longest sequence, in tokens. `dtype` is that of the checkpoint.
    """

    architecture: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_eps: float
    rope: RopeConfig
    context_length: int
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str

    @staticmethod
    def from_hf(
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        context_length: int | None = None,
    ) -> "ModelConfig":
        """Read a config.json. `context_length` lowers the model's own, and is never above it.

        Old spellings (`rope_theta`, `rope_scaling`, `torch_dtype`) and those of transformers 5
        are both read. Raises ModelLoadError naming the key that is missing or not supported.
        """
        architecture = _architecture(config)
        _refuse_what_is_not_computed(config)
        heads, kv_heads, head_dim = _heads(config, architecture)
        bias = bool(config.get("attention_bias")) and architecture != "MistralForCausalLM"
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        return ModelConfig(
            architecture=architecture,
            hidden_size=_count(config, "hidden_size"),
            n_layers=_count(config, "num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=_count(config, "intermediate_size"),
            vocab_size=_count(config, "vocab_size"),
            rms_eps=_positive(config, "rms_norm_eps", 1e-6),
            rope=_rope(config),
            context_length=_context_length(config, architecture, context_length),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=is_qwen2 or bias,
            o_bias=bias and not is_qwen2,
            qk_norm=architecture == "Qwen3ForCausalLM",
            eos_token_ids=_end_tokens(config, generation_config or {}),
            bos_token_id=config.get("bos_token_id"),
            dtype=_dtype(config),
        )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or [ARCHITECTURES.get(config.get("model_type", ""))]
    if named[0] not in ARCHITECTURES.values():
        raise ModelLoadError(
            f"architecture {named[0] or config.get('model_type')!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES.values())}"
        )
    return str(named[0])


def _heads(config: Mapping[str, Any], architecture: str) -> tuple[int, int, int]:
    """(query heads, key and value heads, width of a head)."""
    heads = _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelLoadError(
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
        )
    share = _count(config, "hidden_size") // heads
    is_qwen3 = architecture == "Qwen3ForCausalLM"
    head_dim = _count(config, "head_dim", QWEN3_HEAD_DIM if is_qwen3 else share)
    if head_dim % 2:
        raise ModelLoadError(f"head_dim must be even, got {head_dim}")
    return heads, kv_heads, head_dim


def _refuse_what_is_not_computed(config: Mapping[str, Any]) -> None:
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelLoadError(f"hidden_act {act!r} is not supported, only silu")
    if config.get("mlp_bias"):
        raise ModelLoadError("mlp_bias is not supported")
    if config.get("quantization_config"):
        raise ModelLoadError(
            "quantization_config: quantised checkpoints are not supported; "
            "use the model's bfloat16 weights, or a GGUF file"
        )


def _context_length(config: Mapping[str, Any], architecture: str, wanted: int | None) -> int:
    """The model's own length or the one wanted, whichever is less, if no window cuts it."""
    length = min(_count(config, "max_position_embeddings"), wanted or 2**31)
    window = _window(config, architecture)
    if window is not None and window < length:
        raise ModelLoadError(
            f"sliding_window ({window}) is not supported; "
            f"set the context length to at most {window}, where it makes no difference"
        )
    return length


def _window(config: Mapping[str, Any], architecture: str) -> int | None:
    """Tokens a layer looks back, None for all. Llama has no windows; Qwen asks for them."""
    if architecture == "LlamaForCausalLM":
        return None
    is_mistral = architecture == "MistralForCausalLM"
    if not config.get("use_sliding_window", is_mistral):
        return None
    window = config.get("sliding_window", MISTRAL_WINDOW if is_mistral else None)
    return None if window is None else int(window)


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ModelLoadError("rope_parameters that differ by layer are not supported")
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelLoadError("partial_rotary_factor is not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ModelLoadError(
            f"rope_type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}"
        )
    theta = _positive(rope, "rope_theta", config.get("rope_theta") or 10000.0)
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, kind, _positive(rope, "factor"))
    if kind == "llama3":
        return RopeConfig(
            theta,
            kind,
            _positive(rope, "factor"),
            _count(rope, "original_max_position_embeddings"),
            low_freq_factor=_positive(rope, "low_freq_factor"),
            high_freq_factor=_positive(rope, "high_freq_factor"),
        )
    return _yarn(rope, theta, _count(config, "max_position_embeddings"))


def _yarn(rope: Mapping[str, Any], theta: float, length: int) -> RopeConfig:
    original = _count(rope, "original_max_position_embeddings", length)
    return RopeConfig(
        theta,
        "yarn",
        _positive(rope, "factor", length / original),
        original,
        beta_fast=_positive(rope, "beta_fast", 32.0),
        beta_slow=_positive(rope, "beta_slow", 1.0),
        truncate=bool(rope.get("truncate", True)),
        attention_factor=rope.get("attention_factor"),
        mscale=rope.get("mscale") or 0.0,
        mscale_all_dim=rope.get("mscale_all_dim") or 0.0,
    )


def _end_tokens(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """All ids that end a text, in the order named. Each config has one, several or none."""
    found: list[int] = []
    for config in configs:
        ends = config.get("eos_token_id")
        found += ends if isinstance(ends, list) else [] if ends is None else [ends]
    return tuple(dict.fromkeys(found))


def _dtype(config: Mapping[str, Any]) -> str:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")
    return str(name)


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ModelLoadError(f"the model's config has no {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelLoadError(f"{key} must be a whole number of at least 1, got {value!r}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ModelLoadError(f"the model's config has no {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelLoadError(f"{key} must be a number above 0, got {value!r}")
    return float(value)
