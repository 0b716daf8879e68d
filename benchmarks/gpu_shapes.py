"""The models, batches and workloads that gpu_check.py measures, and the least time that each takes.

Nothing here needs torch or a GPU. A floor is the larger of bytes over BANDWIDTH and operations over
FLOPS: what an H200 reaches, not what is printed on it.
"""

from dataclasses import dataclass

BANDWIDTH, FLOPS = 4.3e12, 790e12  # bytes/s, bf16 operations/s
FP8_FLOPS = 2 * FLOPS
PAGE = 64
BATCHES, CONTEXTS = (1, 32, 256), (1024, 4096)
PREFILLS = (4096, 16384)
TRUNK_ROWS, TRUNK = 64, 16384


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights of all layers: those that every token of a prompt goes through."""
        h, d = self.hidden, self.head_dim
        one = h * (self.heads + 2 * self.kv_heads) * d + self.heads * d * h
        return self.layers * (one + 3 * h * self.intermediate + 2 * h)

    @property
    def kv_bytes(self) -> int:
        """Of one token, in all layers."""
        return 2 * self.kv_heads * self.head_dim * self.layers * 2


SHAPES = {
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, True),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, True),
}
LARGE, SMALL = "Llama-3.1-8B", "Qwen2.5-0.5B"
PEERS = ("Qwen2.5-0.5B", "Qwen2.5-1.5B")  # shapes that transformers runs too


@dataclass(frozen=True)
class Workload:
    """Requests that come at once: tokens of prompt that all share, of their own, and generated."""

    requests: int
    trunk: int
    own: int
    new: int

    def prompts(self, salt: int) -> list[list[int]]:
        """Token ids 1 to 103. With another salt nothing that was computed before is of use."""
        shared = [1 + (salt * 7 + k * 13) % 101 for k in range(self.trunk)]
        return [
            [*shared, *(1 + (salt * 31 + i * 17 + k * 29 + i * k) % 103 for k in range(self.own))]
            for i in range(self.requests)
        ]


WORKLOADS = {
    "decode-heavy": Workload(32, 0, 128, 128),
    "prefill-heavy": Workload(32, 0, 2048, 16),
    "shared prefix": Workload(64, 2048, 64, 64),
}


def hf_config(shape: Shape) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32768,
    }


def floor_ms(shape: Shape, batch: int, context: int) -> float:
    """A decode step cannot be shorter: it reads the weights, and the keys and values, once."""
    weights = shape.linear + shape.vocab * shape.hidden
    seconds = max(2 * weights / BANDWIDTH, 2 * weights * batch / FLOPS)
    return (seconds + batch * context * shape.kv_bytes / BANDWIDTH) * 1e3


def prefill_floor_ms(shape: Shape, n: int) -> float:
    attention = 2 * shape.heads * shape.head_dim * shape.layers * n * n
    return (2 * shape.linear * n + attention) / FLOPS * 1e3


# --- names of figures: what is measured, and the goals that ask for it --------------------------


def decode_name(shape: str, batch: int, context: int) -> str:
    return f"{shape} decode B={batch} ctx={context}"


def idle_name(shape: str) -> str:
    return f"{shape} device idle, decode B=32"


def prefill_name(shape: str, n: int) -> str:
    return f"{shape} prefill {n}"


def attention_name(shape: str, batch: int, context: int) -> str:
    return f"{shape} attention, decode B={batch} ctx={context}"


def attention_prefill_name(shape: str, n: int) -> str:
    return f"{shape} attention, prefill {n}"


def trunk_name(shape: str, how: str) -> str:
    return f"{shape} attention, {TRUNK_ROWS} on a trunk of {TRUNK}, {how}"


def workload_name(shape: str, workload: str) -> str:
    w = WORKLOADS[workload]
    prompt = f"{w.trunk}+{w.own}" if w.trunk else str(w.own)
    return f"{shape} {workload}: {w.requests} x {prompt} in, {w.new} out"


def theirs(name: str, peer: str) -> str:
    return f"{peer}: {name}"
