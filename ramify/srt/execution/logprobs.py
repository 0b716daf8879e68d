"""Log-probabilities as clients see them: under the model's own distribution, before any option."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ramify.srt.messages import TokenLogprob


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """The log-probability of one token per row of fp32 logits [rows, vocabulary].

    With `top`, each comes with that many of the likeliest tokens, likeliest first.
    """
    if not tokens:
        return ()
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1).tolist()
    best: list[list[tuple[float, int]]] = [[] for _ in tokens]
    if top:
        values, ids = logprobs.topk(top)
        pairs = zip(values.tolist(), ids.tolist(), strict=True)
        best = [list(zip(v, i, strict=True)) for v, i in pairs]
    return tuple(
        TokenLogprob(value, token, b) for value, token, b in zip(chosen, tokens, best, strict=True)
    )
