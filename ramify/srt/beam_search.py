"""Beam search above the engine: each step is one batch of single-token requests.

    running hypotheses --> one request each --> their likeliest next tokens --> `extend`
          ^                (a hit in the cache but for the last token)               |
          `------------------- the best that have not ended <------------------------´

The search itself is `extend`, a pure function. It gives what `generate(num_beams=...)` of
transformers gives: a hypothesis scores the sum of its log-probabilities divided by its length in
new tokens (the end token is one) to the power of `length_penalty`.

`Search` folds the engine's answers into it, whoever asks the engine: `beam_search` here, in this
process, and the HTTP server above the engine's process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from ramify.srt.errors import Aborted, InvalidRequest
from ramify.srt.intake import MAX_TOP_LOGPROBS
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.tokenization.incremental import IncrementalDecoder
from ramify.srt.tokenization.tokenizer import Tokenizer

MAX_BEAM_WIDTH = 64
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
        """The score of a hypothesis of `length` new tokens; an empty one has 0."""
        return logprob / math.pow(max(length, 1), self.length_penalty)


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


# --- a search and its replies ---------------------------------------------------------------------

# What each step asks of each hypothesis: one token, of which only the alternatives matter.
ONE_TOKEN = SamplingParams(max_new_tokens=1, temperature=0.0, sampling_seed=0)


@dataclass
class Search:
    """A search under way: how far it is, and what its steps took.

    `cut` is the finish reason of hypotheses that still ran when the search was ended early.
    """

    options: BeamOptions
    prompt_tokens: int
    beams: Beams = field(default_factory=Beams)
    cut: dict[str, Any] | None = None
    computed_tokens: int = 0
    _first: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """True when no further step is needed."""
        return not self.beams.running or self.cut is not None

    def take(self, metas: Sequence[dict[str, Any]]) -> None:
        """Fold a step in: the `meta_info` of the replies to each running hypothesis, in order.

        A step of which the engine has dropped a request ends the search.
        """
        self._first = self._first or metas[0]
        self.computed_tokens += sum(m["prompt_tokens"] - m["cached_tokens"] for m in metas)
        dropped = [meta for meta in metas if not meta["output_token_logprobs"]]
        if dropped:
            self.cut = self.cut or dropped[0]["finish_reason"]
            return
        likeliest = [[(lp, i) for lp, i, _ in meta["output_top_logprobs"][0]] for meta in metas]
        self.beams = extend(self.beams, likeliest, self.options)

    def best(self) -> list[Hypothesis]:
        """The hypotheses there are, at most `beam_width`, best score first."""
        found = (*self.beams.finished, *self.beams.running)
        return sorted(found, key=lambda h: -self._score(h))[: self.options.beam_width]

    def finish_reason(self, found: Hypothesis) -> dict[str, Any] | None:
        """Why a hypothesis goes no further, as in a native reply; None while it does."""
        length = len(found.token_ids)
        if length and _ends(found, self.options):
            return {"type": "stop", "matched": found.token_ids[-1]}
        if length == self.options.max_new_tokens:
            return {"type": "length", "length": length}
        return self.cut

    def replies(self, tokenizer: Tokenizer | None) -> list[Reply]:
        """A native reply for each of `best`.

        `meta_info` says of the prompt what was found in the cache at the first step, and how many
        prompt tokens all steps together have computed.
        """
        return [self._reply(found, tokenizer) for found in self.best()]

    def _reply(self, found: Hypothesis, tokenizer: Tokenizer | None) -> Reply:
        ids = list(found.token_ids)
        reason = self.finish_reason(found)
        text = ""
        if tokenizer is not None:
            decoder = IncrementalDecoder(tokenizer)
            ended = reason is not None and reason["type"] == "stop"
            text = decoder.push(ids[:-1] if ended else ids) + decoder.finish()
        meta = {
            "finish_reason": reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(ids),
            "cached_tokens": self._first.get("cached_tokens", 0),
            "cached_tokens_details": self._first.get("cached_tokens_details"),
            "computed_tokens": self.computed_tokens,
            "cache_miss_reason": self._first.get("cache_miss_reason"),
            "score": self._score(found),
            "cumulative_logprob": found.logprob,
        }
        return {"text": text, "output_ids": ids, "meta_info": meta}

    def _score(self, found: Hypothesis) -> float:
        return self.options.score(found.logprob, len(found.token_ids))


def check_options(options: BeamOptions, most_beams: int, vocab_size: int) -> None:
    """Raises InvalidRequest for an option that no search can have, whatever its prompt."""
    ends, penalty = options.eos_token_ids, options.length_penalty
    for token_id in ends:
        _within("eos_token_ids", token_id, 0, vocab_size - 1)
    _within("beam_width", options.beam_width, 1, most_beams)
    _within("max_new_tokens", options.max_new_tokens, 1, 2**31 - 1)
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


# --- the search over an engine in this process ----------------------------------------------------


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

    Each is a reply as `Engine.generate` gives it; its `meta_info` has the `score`, the sum of
    log-probabilities (`cumulative_logprob`), `cached_tokens` of the prompt, and `computed_tokens`:
    the prompt tokens computed in all steps of the search together. End tokens are the model's
    unless given. Raises InvalidRequest naming the option, and Aborted when the engine drops a step.
    """
    tokenizer, info = engine.get_tokenizer(), engine.model_info()
    ends = info["eos_token_ids"] if eos_token_ids is None else eos_token_ids
    options = BeamOptions(
        beam_width, max_new_tokens, tuple(dict.fromkeys(ends)), length_penalty, early_stopping
    )
    ids = _prompt_ids(prompt, input_ids, tokenizer)
    _check(options, n, len(ids), info)
    search = Search(options, len(ids))
    asked: dict[str, Any] = {
        "sampling_params": msgspec.structs.asdict(ONE_TOKEN),
        "return_logprob": True,
        "top_logprobs_num": min(options.n_candidates, info["vocab_size"]),
        "namespace": namespace,
    }
    while not search.over:
        texts = [[*ids, *hypothesis.token_ids] for hypothesis in search.beams.running]
        search.take([r["meta_info"] for r in engine.generate(input_ids=texts, **asked)])
    if search.cut is not None:
        raise Aborted("the engine ended a step of the beam search")
    return search.replies(tokenizer)[:n]


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
    ends = len(options.eos_token_ids)
    if ends >= MAX_TOP_LOGPROBS:
        raise _wrong("eos_token_ids", f"takes at most {MAX_TOP_LOGPROBS - 1} ids")
    check_options(options, MAX_TOP_LOGPROBS - ends, info["vocab_size"])
    _within("n", n, 1, options.beam_width)
    room = info["context_length"] - prompt_tokens
    if room < 1:
        raise _wrong("prompt", f"fills the context of {info['context_length']} tokens")
    _within("max_new_tokens", options.max_new_tokens, 1, room)
