"""Log-probabilities of choices after a prompt, by token ids.

Tokens may straddle the end of the prompt: "New" + "ton" can be the one token "Newton". So prompt
and choice are tokenised together, and scoring starts at the first token where the prompt on its
own and the prompts with each choice are not all the same:

    prompt         | a  b  c     |
    prompt + x     | a  b  c  x  |       scored: c x      The common prefix is a b: the prompt's
    prompt + y     | a  b  cy    |       scored: cy       last token is another in the last row.

The end of the prompt that is scored with the choices is the same text for all of them, so their
means stay comparable.
"""

from collections.abc import Sequence
from typing import Any

from ramify.lang.backends.base import EngineLike, Scores
from ramify.lang.choices import Triples, logprobs_of, mean

WINDOW = 8  # tokens of the prompt to look at first; more of them only if all are different
NO_TOKENS = {"max_new_tokens": 0, "temperature": 0.0}


def score(
    engine: EngineLike, prompt: str, choices: Sequence[str], *, unconditional: bool
) -> Scores:
    """Scores of the choices, all in one batch, so that they share the prompt in the cache.

    Raises ValueError for an empty prompt: the first token of a text has no probability.
    """
    if not prompt:
        raise ValueError("select needs some text before it to compare its choices against")
    asked = _Asked(engine)
    [cached] = asked.metas([prompt])
    texts = [prompt, *(prompt + choice for choice in choices)]
    metas = _conditional(asked, texts, cached["prompt_tokens"])
    own, *joint = [meta["input_token_logprobs"] for meta in metas]
    start = common_tokens([own, *joint])
    scored = [entries[start:] for entries in joint]
    return Scores(
        [_mean(entries, choice) for entries, choice in zip(scored, choices, strict=True)],
        scored,
        [meta.get("output_token_logprobs") or [] for meta in metas[1:]],
        _unconditional(asked, scored) if unconditional else None,
        asked.prompt_tokens,
        asked.cached_tokens,
    )


class _Asked:
    """An engine that computes prompts only, and the count of their tokens."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def metas(self, texts: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
        """The meta information of each prompt."""
        replies = self._engine.generate(texts, dict(NO_TOKENS), **options)
        metas = [reply["meta_info"] for reply in replies]
        self.prompt_tokens += sum(meta["prompt_tokens"] for meta in metas)
        self.cached_tokens += sum(meta["cached_tokens"] for meta in metas)
        return metas


def common_tokens(rows: Sequence[Triples]) -> int:
    """Length of the longest prefix of token ids that all rows have."""
    length = 0
    for entries in zip(*rows, strict=False):
        if len({entry[1] for entry in entries}) > 1:
            break
        length += 1
    return length


def _conditional(asked: _Asked, texts: list[str], length: int) -> list[dict[str, Any]]:
    """Meta information with the log-probabilities from some tokens before `length` on.

    The first entry may have none, as nothing before it was computed; so the window must begin with
    a token that all texts have in common, or with the text.
    """
    window = WINDOW
    while True:
        start = max(length - window, 0)
        metas = asked.metas(texts, return_logprob=True, logprob_start_len=start)
        if start == 0 or common_tokens([meta["input_token_logprobs"] for meta in metas]):
            return metas
        window *= 8


def _unconditional(asked: _Asked, scored: list[Triples]) -> list[Triples]:
    """Entries of the same tokens with nothing before them."""
    rows = [[entry[1] for entry in entries] for entries in scored]
    metas = asked.metas(input_ids=rows, return_logprob=True, logprob_start_len=0)
    return [meta["input_token_logprobs"] for meta in metas]


def _mean(entries: Triples, choice: str) -> float:
    known = logprobs_of(entries)
    if not known:
        raise ValueError(f"select cannot score {choice!r}: more text is needed before it")
    return mean(known)
