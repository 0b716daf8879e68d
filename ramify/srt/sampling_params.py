"""How one request wants its tokens chosen: declared once here, and never listed again as arguments.

Names and defaults are those of SGLang's native surface. `validate` is called at the edge, before a
request gets an id: the engine trusts what it receives.
"""

import math

import msgspec

from ramify.srt.errors import InvalidRequest

MAX_N = 128
MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 512
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1
GREEDY_BELOW = 1e-6  # a temperature under this is greedy


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling options of one request.

    Penalties act on the raw logits, then `logit_bias`, then `temperature`, then the filters in the
    order `top_k`, `top_p` (on the renormalised rest), `min_p` (relative to the likeliest token).
    `max_new_tokens` 0 computes the prompt and generates nothing; None means all the context allows.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    sampling_seed: int | None = None

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def penalised(self) -> bool:
        """True when the tokens so far change the logits."""
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def validate(self, vocab_size: int) -> None:
        """Check every range. Raises InvalidRequest naming the first field that is wrong."""
        self._validate_lengths()
        self._validate_floats()
        self._validate_stops(vocab_size)
        if self.sampling_seed is not None:
            _within("sampling_seed", self.sampling_seed, 0, MAX_SEED)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise _wrong("logit_bias", f"at most {MAX_LOGIT_BIAS} entries")
        for token_id, bias in self.logit_bias.items():
            _within("logit_bias", token_id, 0, vocab_size - 1, "token ids")
            _within("logit_bias", bias, -1e4, 1e4, "values")

    def _validate_lengths(self) -> None:
        if self.max_new_tokens is not None:
            _within("max_new_tokens", self.max_new_tokens, 0, 2**31 - 1)
        most = 2**31 - 1 if self.max_new_tokens is None else self.max_new_tokens
        _within("min_new_tokens", self.min_new_tokens, 0, most)
        _within("n", self.n, 1, MAX_N)

    def _validate_floats(self) -> None:
        _within("temperature", self.temperature, 0.0, 1e4)
        _within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise _wrong("top_p", "more than 0 and at most 1")
        if self.top_k != -1:
            _within("top_k", self.top_k, 1, 2**31 - 1, "-1 (the whole vocabulary), or values")
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 2.0)
        if self.repetition_penalty == 0.0:
            raise _wrong("repetition_penalty", "more than 0 and at most 2")

    def _validate_stops(self, vocab_size: int) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _wrong("stop", f"at most {MAX_STOP_STRINGS} strings")
        if any(not text or len(text) > MAX_STOP_CHARS for text in self.stop):
            raise _wrong("stop", f"strings of 1 to {MAX_STOP_CHARS} characters")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise _wrong("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids")
        for token_id in self.stop_token_ids:
            _within("stop_token_ids", token_id, 0, vocab_size - 1)


def _within(name: str, value: float, low: float, high: float, what: str = "values") -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise _wrong(name, f"{what} from {low:g} to {high:g}", value)


def _wrong(name: str, right: str, value: object = None) -> InvalidRequest:
    got = "" if value is None else f", got {value}"
    return InvalidRequest(f"{name} takes {right}{got}", param=name, code="invalid_value")
