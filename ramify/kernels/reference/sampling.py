"""From logits to tokens in plain torch, row by row: penalties, bias and masks, then the draw.

A token is drawn by inverse transform: the kept weights are laid end to end, and the row's own
random number points at one of them. So a request draws the same tokens in any batch, and on any
device but for the rounding of the weights. Without filters they lie in the order of the tokens,
which needs no search; with filters likeliest first, as filters cut there, the lower id first among
equals.
"""

import torch
from torch import Tensor

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.reference.logits import mask_logits

NEVER = float("-inf")
LARGEST = 3e38  # plus infinity, and what overflows when divided by the temperature, count as this


def adjust_logits(logits: Tensor, adjustments: Adjustments) -> None:
    """Change logits [L, V] by repetition, frequency and presence, then bias, then masks."""
    a = adjustments
    a.check(logits)
    penalised = a.history_rows >= 0
    if penalised.any():
        rows = a.rows[penalised]
        logits[rows] = _penalise(logits[rows].float(), a, penalised).to(logits.dtype)
    old = logits[a.bias_rows, a.bias_tokens].float()
    new = torch.where(a.bias == NEVER, NEVER, old + a.bias)
    logits[a.bias_rows, a.bias_tokens] = new.to(logits.dtype)
    masked = a.mask_rows >= 0
    mask_logits(logits, a.rows[masked], a.mask[a.mask_rows[masked].long()])


def _penalise(x: Tensor, a: Adjustments, rows: Tensor) -> Tensor:
    history = a.history[a.history_rows[rows].long()]
    count = history >> 1
    rate = a.repetition[rows, None]
    x = torch.where(history != 0, torch.where(x > 0, x / rate, x * rate), x)
    x = x - a.frequency[rows, None] * count
    return x - a.presence[rows, None] * (count > 0)


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """A token per row, -1 where no logit is above minus infinity.   [L, V] -> [L] int64

    NaN counts as minus infinity. top_k keeps so many; top_p the fewest that reach its share of
    what is left; min_p those with at least its share of the likeliest, which always stays.
    """
    draws.check(logits)
    tokens = [_sample_row(logits[row], draws, row) for row in range(len(logits))]
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def _sample_row(logits: Tensor, draws: Draws, row: int) -> int:
    temperature = draws.temperature[row]
    x = logits.float().nan_to_num(NEVER, LARGEST, NEVER)
    if temperature > 0:
        x = (x / temperature).clamp(max=LARGEST)
    top, token = x.max(), int((x == x.max()).long().argmax())
    if top == NEVER:
        return -1
    if temperature == 0:
        return token
    weights = (x - top).exp()
    top_k, top_p, min_p = int(draws.top_k[row]), draws.top_p[row], draws.min_p[row]
    if top_k == -1 and top_p == 1 and min_p == 0:
        return _point(weights.double(), draws.random[row])
    ranked, ids = weights.sort(descending=True, stable=True)
    kept = ranked.double()
    if top_k != -1:
        kept = kept[:top_k]
    before = kept.cumsum(0) - kept
    kept = kept[(before < top_p * kept.sum()) & (ranked[: len(kept)] >= min_p)]
    return int(ids[_point(kept, draws.random[row])])


def _point(weights: Tensor, random: Tensor) -> int:
    """The index of the weight that a share of their total points at, never a weight of zero."""
    ends = weights.cumsum(0)
    index = int(torch.searchsorted(ends, random * ends[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))
