"""Beam search above the engine: each step is one batch of single-token requests.

    running hypotheses --> one request each --> their likeliest next tokens --> `extend`
          ^                (a hit in the cache but for the last token)               |
          `------------------- the best that have not ended <------------------------´

The search itself is `extend`, a pure function. It gives what `generate(num_beams=...)` of
transformers gives: a hypothesis scores the sum of its log-probabilities divided by its length in
new tokens (the end token is one) to the power of `length_penalty`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ramify.srt.errors import Aborted, InvalidRequest
from ramify.srt.intake import MAX_TOP_LOGPROBS
from ramify.srt.tokenization.incremental import IncrementalDecoder
from ramify.srt.tokenization.tokenizer import Tokenizer

MAX_LENGTH_PENALTY = 10.0

EarlyStopping = bool | Literal["never"]
Reply = dict[str, Any]
Candidate = tuple[float, int]  # (log-probability, token id)


class Generator(Protocol):
    """The part of `Engine` that the search needs."""

    def generate(
        self,
        prompt: None = None,
        sampling_params: dict[str, Any] | None = None,
        input_ids: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> Any: ...

    def model_info(self) -> dict[str, Any]: ...

    def get_tokenizer(self) -> Tokenizer | None: ...


# --- the search, pure -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BeamOptions:
    """How to search.

    `early_stopping` says when `beam_width` ended hypotheses are enough: True, at once; False, when
    the best running one would score no better if it ended now; "never", when it could not even at
    the length that scores best.
    """

    beam_width: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    @property
    def n_candidates(self) -> int:
        """How many of the likeliest tokens of each hypothesis decide a step.

        Among them are `beam_width` that do not end it, and no more can go on in all.
        """
        return self.beam_width + len(self.eos_token_ids)

    def score(self, logprob: float, length: int) -> float:
        """The score of a hypothesis of `length` new tokens."""
        return logprob / math.pow(length, self.length_penalty)


@dataclass(frozen=True)
class Hypothesis:
    """New tokens and the sum of their log-probabilities."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0


@dataclass(frozen=True)
class Beams:
    """A step of a search: what still runs, likeliest first, and what has ended, best score first.

    At most `beam_width` of each. The search is over when `running` is empty.
    """

    running: tuple[Hypothesis, ...] = (Hypothesis(),)
    finished: tuple[Hypothesis, ...] = ()


def extend(beams: Beams, candidates: Sequence[Sequence[Candidate]], options: BeamOptions) -> Beams:
    """The search one token further. `candidates` has the likeliest next tokens for each running.

    An ended hypothesis counts only if it is among the `beam_width` likeliest of this step: the
    others stand by so that enough can go on.
    """
    grown = sorted(
        (
            Hypothesis((*hypothesis.token_ids, token_id), hypothesis.logprob + logprob)
            for hypothesis, likeliest in zip(beams.running, candidates, strict=True)
            for logprob, token_id in likeliest
        ),
        key=lambda hypothesis: -hypothesis.logprob,
    )
    width, length = options.beam_width, len(beams.running[0].token_ids) + 1
    ended = [h for h in grown[:width] if length == options.max_new_tokens or _ends(h, options)]
    finished = sorted(
        (*beams.finished, *ended), key=lambda h: -options.score(h.logprob, len(h.token_ids))
    )[:width]
    running = [h for h in grown if not _ends(h, options)][:width]
    if length == options.max_new_tokens or _is_over(running, finished, options):
        running = []
    return Beams(tuple(running), tuple(finished))


def _ends(hypothesis: Hypothesis, options: BeamOptions) -> bool:
    return hypothesis.token_ids[-1] in options.eos_token_ids


def _is_over(
    running: Sequence[Hypothesis], finished: Sequence[Hypothesis], options: BeamOptions
) -> bool:
    """True when enough has ended and, as far as the options look, nothing better can come."""
    if not running or len(finished) < options.beam_width:
        return not running
    if options.early_stopping is True:
        return True
    longest = options.early_stopping == "never" and options.length_penalty > 0
    length = options.max_new_tokens if longest else len(running[0].token_ids)
    worst = finished[-1]
    return options.score(running[0].logprob, length) <= options.score(
        worst.logprob, len(worst.token_ids)
    )


# --- the search over an engine --------------------------------------------------------------------


def beam_search(
    engine: Generator,
    prompt: str | None = None,
    input_ids: Sequence[int] | None = None,
    *,
    beam_width: int = 4,
    max_new_tokens: int = 128,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    n: int = 1,
    eos_token_ids: Sequence[int] | None = None,
    namespace: str = "",
) -> list[Reply]:
    """The `n` best continuations of a prompt, best first.

    Each is a reply as `Engine.generate` gives it, with `score`; its `meta_info` has the sum of
    log-probabilities (`cumulative_logprob`), `cached_tokens` of the prompt, and `computed_tokens`:
    the prompt tokens computed in all steps of the search together. End tokens are the model's
    unless given. Raises InvalidRequest naming the option, and Aborted when the engine drops a step.
    """
    tokenizer, info = engine.get_tokenizer(), engine.model_info()
    if eos_token_ids is None:
        eos_token_ids = info["eos_token_ids"]
    options = BeamOptions(
        beam_width,
        max_new_tokens,
        tuple(dict.fromkeys(eos_token_ids)),
        length_penalty,
        early_stopping,
    )
    ids = _prompt_ids(prompt, input_ids, tokenizer)
    _check(options, n, len(ids), info)
    steps = _Steps(engine, ids, min(options.n_candidates, info["vocab_size"]), namespace)
    beams = Beams()
    while beams.running:
        beams = extend(beams, steps.candidates(beams.running), options)
    return [_reply(found, options, tokenizer, steps) for found in beams.finished[:n]]


class _Steps:
    """Asks the engine for the likeliest next tokens, and counts what that took."""

    def __init__(self, engine: Generator, prompt: list[int], top: int, namespace: str) -> None:
        self.prompt = prompt
        self.cached_tokens = 0
        self.computed_tokens = 0
        self._engine = engine
        self._options: dict[str, Any] = {
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "top_logprobs_num": top,
            "namespace": namespace,
        }

    def candidates(self, running: Sequence[Hypothesis]) -> list[list[Candidate]]:
        """The likeliest next tokens of each hypothesis, likeliest first."""
        texts = [[*self.prompt, *hypothesis.token_ids] for hypothesis in running]
        metas = [r["meta_info"] for r in self._engine.generate(input_ids=texts, **self._options)]
        if not running[0].token_ids:
            self.cached_tokens = metas[0]["cached_tokens"]
        self.computed_tokens += sum(m["prompt_tokens"] - m["cached_tokens"] for m in metas)
        if not all(meta["output_token_logprobs"] for meta in metas):
            raise Aborted("the engine ended a step of the beam search")
        return [[(lp, i) for lp, i, _ in meta["output_top_logprobs"][0]] for meta in metas]


def _prompt_ids(
    prompt: str | None, input_ids: Sequence[int] | None, tokenizer: Tokenizer | None
) -> list[int]:
    if (prompt is None) == (input_ids is None):
        raise _wrong("prompt", "or input_ids must be given, and not both")
    if input_ids is not None:
        if not isinstance(input_ids, Sequence):
            raise _wrong("input_ids", "must be a list of token ids")
        return list(input_ids)
    if tokenizer is None or not isinstance(prompt, str):
        raise _wrong("prompt", "must be a text, for a model with a tokenizer; or send input_ids")
    return tokenizer.encode(prompt)


def _check(options: BeamOptions, n: int, prompt_tokens: int, info: dict[str, Any]) -> None:
    """Raises InvalidRequest for an option out of range."""
    ends, penalty = options.eos_token_ids, options.length_penalty
    for token_id in ends:
        _within("eos_token_ids", token_id, 0, info["vocab_size"] - 1)
    if len(ends) >= MAX_TOP_LOGPROBS:
        raise _wrong("eos_token_ids", f"takes at most {MAX_TOP_LOGPROBS - 1} ids")
    _within("beam_width", options.beam_width, 1, MAX_TOP_LOGPROBS - len(ends))
    _within("n", n, 1, options.beam_width)
    room = info["context_length"] - prompt_tokens
    if room < 1:
        raise _wrong("prompt", f"fills the context of {info['context_length']} tokens")
    _within("max_new_tokens", options.max_new_tokens, 1, room)
    if type(penalty) not in (int, float) or not abs(penalty) <= MAX_LENGTH_PENALTY:
        right = f"takes a number from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
        raise _wrong("length_penalty", right)
    if type(options.early_stopping) is not bool and options.early_stopping != "never":
        raise _wrong("early_stopping", 'takes true, false, or "never"')


def _within(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _wrong(name, f"takes an integer from {low} to {high} here, got {value!r:.40}")


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {what}", param=name, code="invalid_value")


def _reply(
    found: Hypothesis, options: BeamOptions, tokenizer: Tokenizer | None, steps: _Steps
) -> Reply:
    ids = list(found.token_ids)
    ended = _ends(found, options)
    text = ""
    if tokenizer is not None:
        decoder = IncrementalDecoder(tokenizer)
        text = decoder.push(ids[:-1] if ended else ids) + decoder.finish()
    return {
        "text": text,
        "output_ids": ids,
        "score": options.score(found.logprob, len(ids)),
        "meta_info": {
            "finish_reason": (
                {"type": "stop", "matched": ids[-1]}
                if ended
                else {"type": "length", "length": len(ids)}
            ),
            "prompt_tokens": len(steps.prompt),
            "completion_tokens": len(ids),
            "cached_tokens": steps.cached_tokens,
            "computed_tokens": steps.computed_tokens,
            "cumulative_logprob": found.logprob,
        },
    }
