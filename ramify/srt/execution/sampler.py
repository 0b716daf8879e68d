"""Logits to tokens, for a batch of rows that each have their own parameters.

Greedy rows take the likeliest token. Every other row draws one by inverse transform: the kept
probabilities are laid end to end and the row's own random number in [0, 1) points at one of them.

    probabilities   |--- a ---|- b -|--- c ---|d|    u * total  ^  ->  c

Rows without filters are summed in blocks first, so only one block is walked. Filtered rows look at
their likeliest tokens only: 64 of them, or 1024, or in the end all, whichever first contains
everything that the filters keep. All three give the same token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
CANDIDATES = (64, 1024)


@dataclass(frozen=True)
class Draw:
    """What one row wants: its filters (as in SamplingParams) and its random number."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    random: float
    greedy: bool

    @property
    def filtered(self) -> bool:
        return self.top_k != -1 or self.top_p < 1.0 or self.min_p > 0.0


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token per row of fp32 logits [rows, vocabulary]."""
    tokens = logits.argmax(-1).tolist()
    plain = [i for i, d in enumerate(draws) if not d.greedy and not d.filtered]
    filtered = [i for i, d in enumerate(draws) if not d.greedy and d.filtered]
    for rows, choose in ((plain, _draw_plain), (filtered, _draw_filtered)):
        if rows:
            wanted = [draws[i] for i in rows]
            temperature = torch.tensor([d.temperature for d in wanted])
            probs = (logits[rows] / temperature[:, None]).softmax(-1)
            for i, token in zip(rows, choose(probs, wanted), strict=True):
                tokens[i] = token
    return tokens


def _draw_plain(probs: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Inverse transform over the whole vocabulary, in two levels."""
    n_rows, n = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -n % BLOCK)).view(n_rows, -1, BLOCK)
    block, rest = _point(padded.sum(-1), torch.tensor([d.random for d in draws]).double())
    inside, _ = _point(padded[torch.arange(n_rows), block], rest, scaled=False)
    return [min(int(t), n - 1) for t in block * BLOCK + inside]


def _point(weights: Tensor, u: Tensor, *, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """(index of the weight that u points at, what is left of u inside it), row by row.

    u is a share of the total, or with scaled=False an absolute amount. Never a weight of zero.
    """
    ends = weights.double().cumsum(-1)
    target = u * ends[:, -1] if scaled else u
    index = torch.searchsorted(ends, target[:, None], right=True).squeeze(-1)
    last = (weights > 0).long().cumsum(-1).argmax(-1)  # the last weight above zero
    index = torch.minimum(index, last)
    before = ends.gather(-1, index[:, None]).squeeze(-1) - weights.gather(
        -1, index[:, None]
    ).squeeze(-1)
    return index, (target - before).clamp(min=0.0)


def _draw_filtered(probs: Tensor, draws: Sequence[Draw]) -> list[int]:
    tokens = [0] * len(draws)
    open_rows = list(range(len(draws)))
    for k in (*(k for k in CANDIDATES if k < probs.shape[-1]), probs.shape[-1]):
        if not open_rows:
            break
        top, ids = probs[open_rows].topk(k)
        mine = [draws[i] for i in open_rows]
        kept, settled = _keep(top, mine, complete=k == probs.shape[-1])
        index, _ = _point(kept, torch.tensor([d.random for d in mine]).double())
        chosen = ids.gather(-1, index[:, None]).squeeze(-1).tolist()
        for i, token, done in zip(open_rows, chosen, settled, strict=True):
            if done:
                tokens[i] = token
        open_rows = [i for i, done in zip(open_rows, settled, strict=True) if not done]
    return tokens


def _keep(top: Tensor, draws: Sequence[Draw], *, complete: bool) -> tuple[Tensor, list[bool]]:
    """(probabilities that pass the filters, zero elsewhere; whether nothing kept is missing).

    top [rows, k] is sorted, likeliest first. top_k cuts first; top_p takes tokens until their
    share of what is left reaches p, the crossing one included; min_p cuts below a share of the
    likeliest. The likeliest token always stays.
    """
    k = top.shape[-1]
    rank = torch.arange(k)
    top_k = torch.tensor([k if d.top_k == -1 else min(d.top_k, k) for d in draws])
    top_p = torch.tensor([d.top_p for d in draws]).double()
    min_p = torch.tensor([d.min_p for d in draws])
    in_k = top * (rank < top_k[:, None])
    ends = in_k.double().cumsum(-1)
    limited = torch.tensor([d.top_k != -1 for d in draws])
    total = torch.where(limited, ends[:, -1], torch.ones_like(top_p))
    before = ends - in_k
    passes = (before < (top_p * total)[:, None]) & (in_k >= (min_p[:, None] * top[:, :1]))
    passes[:, 0] = True
    enough_k = torch.tensor([d.top_k != -1 and d.top_k <= k for d in draws])
    unlimited_p = ~limited & (ends[:, -1] >= top_p)
    below_min = top[:, -1] < min_p * top[:, 0]
    settled = enough_k | (unlimited_p & (top_p < 1.0)) | (below_min & ~limited)
    return in_k * passes, [complete or bool(done) for done in settled]
