"""Inverse frequencies of rotary position embeddings, for the scalings that models ship with."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """How positions turn into angles. `kind`: default, linear, llama3 or yarn.

    Only the fields of its own kind matter. `attention_factor` None lets yarn derive it.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0  # llama3, yarn: the context length before the extension
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float | None = None  # yarn
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[list[float], float]:
    """(angle per position [head_dim / 2], factor on cos and sin).

    Pair i of a head turns by position * angle[i].
    """
    plain = [rope.theta ** (-i / head_dim) for i in range(0, head_dim, 2)]
    match rope.kind:
        case "linear":
            return [angle / rope.factor for angle in plain], 1.0
        case "llama3":
            return [_llama3(rope, angle) for angle in plain], 1.0
        case "yarn":
            return _yarn(rope, plain, head_dim), _yarn_attention_factor(rope)
    return plain, 1.0


def _llama3(rope: RopeConfig, angle: float) -> float:
    """Slow pairs are stretched by `factor`, fast ones kept, those between are blended."""
    turns = rope.original_length * angle / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    kept = _clamp((turns - rope.low_freq_factor) / span)
    return (1 - kept) * angle / rope.factor + kept * angle


def _yarn(rope: RopeConfig, plain: list[float], head_dim: int) -> list[float]:
    """As llama3, but blended along the index of the pair."""

    def pair_of(turns: float) -> float:
        """Index of the pair that turns so many times within the original length."""
        ratio = rope.original_length / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001
    stretched = [_clamp((i - low) / span) for i in range(len(plain))]
    return [
        part * angle / rope.factor + (1 - part) * angle
        for part, angle in zip(stretched, plain, strict=True)
    ]


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """Makes up for the flatter attention of a longer context."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)
