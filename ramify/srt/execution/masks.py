"""Which tokens the grammars of a step allow: filled by the thread that runs the model.

    GPU   launch -->  [ fill, fill, fill ]  upload --> sample      the device computes meanwhile
    CPU   [ fill, fill, fill ]  forward pass  --> sample           all cores compute, or one fills

On a CPU a thread that fills meanwhile takes a core from the forward pass, whose other threads then
wait for it: a step of eight rows took 3 % longer that way. Before the forward pass, what a grammar
needs is still in the processor's caches, which the weights then sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ramify.srt.constrained.base import GrammarError, Matcher, Row, words


@dataclass(frozen=True)
class Masks:
    """`mask` [M, W] int32, a row for each matcher; `errors` says why one cannot go on.

    Good until the next step's are filled.
    """

    mask: Tensor
    errors: list[str | None]


class MaskFiller:
    """The memory that masks are filled into, which grows to the most rows of a step."""

    def __init__(self, vocab_size: int) -> None:
        self._mask = torch.zeros(0, words(vocab_size), dtype=torch.int32)
        self._rows: list[Row] = []  # of the same memory

    def fill(self, matchers: Sequence[Matcher]) -> Masks | None:
        """A mask for each matcher; None if there are none."""
        n = len(matchers)
        if n == 0:
            return None
        if n > len(self._mask):
            self._mask = torch.zeros(n, self._mask.shape[1], dtype=torch.int32)
            self._rows = list(self._mask.numpy())
        errors = [_fill(*pair) for pair in zip(matchers, self._rows, strict=False)]
        return Masks(self._mask[:n], errors)


def _fill(matcher: Matcher, row: Row) -> str | None:
    try:
        return None if matcher.fill(row) else "the grammar allows no token here"
    except GrammarError as error:
        row[:] = 0
        return error.message
