"""Logits of a step to its sampled tokens: penalties and bias, then the mask, then the draw.

logits -- adjust --> -- mask --> -- sample --> token -- the grammar follows --> forced tokens
   `-- log-probabilities are those of the model itself
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.kernels.ops import Ops
from ramify.srt.execution.logprobs import token_logprobs
from ramify.srt.execution.masks import Masks
from ramify.srt.execution.sampler import sample
from ramify.srt.execution.sampling_rows import SamplingRow
from ramify.srt.messages import TokenLogprob
from ramify.srt.scheduling.plan import ChunkResult

NO_NUMBER = "the model gave no number for a token"
NO_WAY_ON = "the grammar's engine cannot go on from here"


@dataclass(frozen=True)
class Sampled:
    """A row to sample: its request's state, and how many forced tokens may follow."""

    row: SamplingRow
    max_forced: int


def draw(
    ops: Ops, wanted: Sequence[Sampled], logits: Tensor, masks: Masks | None
) -> list[ChunkResult]:
    """One result for each row of `logits` [rows, vocabulary] fp32, which may be changed.

    The constrained rows have their masks in `masks`, in this order.
    """
    rows = [item.row for item in wanted]
    changed = any(r.return_logprob and (r.adjusts or r.matcher) for r in rows)
    raw = logits.clone() if changed else logits
    errors = _restrict(ops, rows, logits, masks)
    tokens = sample(logits, [row.draw() for row in rows])
    return [
        _result(item, raw[i : i + 1], token, error)
        for i, (item, token, error) in enumerate(zip(wanted, tokens, errors, strict=True))
    ]


def _restrict(
    ops: Ops, rows: Sequence[SamplingRow], logits: Tensor, masks: Masks | None
) -> list[str | None]:
    """Adjust and mask the logits in place. Says which rows cannot be sampled, and why."""
    before = {i: logits[i].clone() for i, r in enumerate(rows) if r.adjusts and r.matcher}
    for i, row in enumerate(rows):
        if row.adjusts:
            row.adjust(logits[i])
    errors: list[str | None] = [None] * len(rows)
    if masks is None:
        return errors
    constrained = [i for i, row in enumerate(rows) if row.matcher is not None]
    ops.mask_logits(logits, torch.tensor(constrained), masks.mask)
    for m, i in enumerate(constrained):
        errors[i] = masks.errors[m]
        if i in before and logits[i].max() == -torch.inf:  # bias or minimum length forbid the rest
            logits[i] = before[i]
            ops.mask_logits(logits, torch.tensor([i]), masks.mask[m : m + 1])
    return errors


def _result(item: Sampled, raw: Tensor, token: int, error: str | None) -> ChunkResult:
    row = item.row
    if error is not None:
        return ChunkResult(None, error=error)
    if row.return_logprob:
        (news,) = token_logprobs(raw, [token], row.top_logprobs)
    else:
        news = TokenLogprob(None, token)
    return drawn(row, news, item.max_forced) or ChunkResult(
        None, error=NO_NUMBER if raw.isnan().any() else NO_WAY_ON
    )


def drawn(row: SamplingRow, news: TokenLogprob, max_forced: int) -> ChunkResult | None:
    """The result of a row whose token was drawn; None, and nothing noted, if its grammar refuses.

    The row learns the token and those that are forced after it.
    """
    if row.matcher is not None and not row.matcher.accept(news.token_id):
        return None
    row.note(news.token_id)
    forced, complete = row.follow(max_forced)
    return ChunkResult(news, forced=forced, complete=complete)
