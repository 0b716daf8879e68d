"""What a model may change about attention, beside its shape."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Off by default. What a pool stores times its scale is the key or value that is meant."""

    window: int = 0  # a token sees the last `window` positions, its own among them; 0: all
    soft_cap: float = 0.0  # scores become soft_cap * tanh(score / soft_cap); 0: they stay
    k_scale: float = 1.0
    v_scale: float = 1.0


PLAIN = AttentionOptions()
