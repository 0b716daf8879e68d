"""Which tokens the grammars of a step allow: filled on a thread while the model computes.

begin(matchers)  -->  [ fill, fill, fill ]  (thread)
forward pass                                  finish()  -->  mask [M, W], what went wrong
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.srt.constrained.base import GrammarError, Matcher, Row, words


@dataclass(frozen=True)
class Masks:
    """`mask` [M, W] int32, a row for each matcher; `errors` says why one cannot go on."""

    mask: Tensor
    errors: list[str | None]


class MaskFiller:
    """One thread, started with the first constrained request."""

    def __init__(self, vocab_size: int) -> None:
        self._words = words(vocab_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramify-masks")

    def begin(self, matchers: Sequence[Matcher]) -> "Future[Masks] | None":
        """Start to fill a mask for each matcher; None if there are none."""
        return self._thread.submit(self._fill, matchers) if matchers else None

    def _fill(self, matchers: Sequence[Matcher]) -> Masks:
        mask = torch.zeros(len(matchers), self._words, dtype=torch.int32)
        rows = mask.numpy()
        return Masks(mask, [_fill(m, rows[i]) for i, m in enumerate(matchers)])


def _fill(matcher: Matcher, row: Row) -> str | None:
    try:
        return None if matcher.fill(row) else "the grammar allows no token here"
    except GrammarError as error:
        return error.message
