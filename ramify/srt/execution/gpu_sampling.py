"""Sampling on the device: which logits change, the draw, and log-probabilities, never waiting.

logits -- scores' raw rows --> adjust --> draw --> tokens --> last_token, position, history
                   `------------- log_softmax <-------'
The random number of a token is that of `random.uniform`, to the bit: it depends on the request's
seed and the token's position only, so tokens do not depend on the device either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.ops import Ops
from ramify.srt.execution.device import Device
from ramify.srt.execution.device_state import DeviceState
from ramify.srt.execution.masks import Masks
from ramify.srt.execution.sampling_rows import NEVER, SamplingRow
from ramify.srt.scheduling.plan import Enter


def signed(x: int) -> int:
    """A number of 64 bits as torch's int64 holds it."""
    return x - 2**64 if x >= 2**63 else x


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """`random.uniform` for int64 tensors: fp64 numbers in [0, 1)."""
    numbers: Tensor = _right(_mix(_mix(seed) + position), 11).double() * 2.0**-53
    return numbers


def _mix(x: Tensor) -> Tensor:
    x = x + signed(0x9E3779B97F4A7C15)
    x = (x ^ _right(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _right(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ _right(x, 31)


def _right(x: Tensor, n: int) -> Tensor:
    """Shifted right, with zeros coming in: torch's own shift brings in the sign."""
    bits: Tensor = (x >> n) & (2 ** (64 - n) - 1)
    return bits


def draw_tokens(ops: Ops, state: DeviceState, logits: Tensor, rows: Tensor) -> Tensor:
    """A token for each row of logits [L, V], and the rows' state one token further.

    rows [L] int32: places in the tables; the spare row may come often. -> [L] int64, or -1
    """
    at = rows.long()
    length = state.position[at] + 1
    draws = Draws(
        temperature=state.temperature[at],
        top_k=state.top_k[at],
        top_p=state.top_p[at],
        min_p=state.min_p[at],
        random=uniform(state.seed[at], length.long()),
    )
    tokens = ops.sample(logits, draws)
    real = at != state.tables.spare
    state.position[at] = length * real
    state.last_token[at] = (tokens.clamp(min=0) * real).int()
    return tokens


class GpuRow:
    """What the host remembers of a request: its place on the device, and what is there of it."""

    def __init__(
        self, index: int, enter: Enter, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.index = index
        self.params = enter.sampling
        self.return_logprob = enter.return_logprob
        self.top_logprobs = enter.top_logprobs
        self.pages: tuple[int, ...] = ()  # as the device has them
        self.position = -1
        self.uncounted: list[int] = []  # tokens that a grammar forced: not in the history yet
        self._n_prompt = len(enter.prompt)
        ends = () if self.params.ignore_eos else eos_token_ids
        self._ends = sorted({*ends, *self.params.stop_token_ids})
        # What counts tokens is on the device; what follows a grammar is the same on the host.
        plain = msgspec.structs.replace(
            enter.sampling, frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0
        )
        self.grammar = SamplingRow(replace(enter, sampling=plain), vocab_size, eos_token_ids)

    def biases(self, length: int) -> dict[int, float]:
        """What is added to single logits when the sequence has so many tokens."""
        bias = dict(self.params.logit_bias)
        if length - self._n_prompt < self.params.min_new_tokens:
            bias |= dict.fromkeys(self._ends, NEVER)
        return bias


@dataclass(frozen=True)
class Wanted:
    """A row of logits that is sampled, for a sequence of so many tokens."""

    row: GpuRow
    length: int
    max_forced: int


class Histories:
    """Which tokens each request has had, [rows + 1, vocabulary] int32, as `Adjustments` counts.

    There is memory for it from the first request on that is penalised.
    """

    def __init__(self, device: Device, n_rows: int, vocab_size: int) -> None:
        self._device = device
        self._shape = n_rows + 1, vocab_size
        self.table = torch.zeros(0, vocab_size, dtype=torch.int32, device=device.torch_device)

    def enter(self, index: int, enter: Enter) -> None:
        """Start the row of a request that is penalised."""
        if not len(self.table):
            self.table = torch.zeros(
                self._shape, dtype=torch.int32, device=self._device.torch_device
            )
        counts = np.bincount(np.asarray(enter.output, np.int64), minlength=self._shape[1]) * 2
        counts[np.asarray(enter.prompt, np.int64)] += 1
        self.table[index] = self._device.upload(counts.astype(np.int32))

    def note(self, rows: Sequence[GpuRow], tokens: Tensor) -> None:
        """Count a token for each row that is penalised.   tokens [rows] int64, or -1"""
        at = [i for i, row in enumerate(rows) if row.params.penalised]
        if at:
            where = self._ints(at), self._ints([rows[i].index for i in at])
            self._add(where[1], tokens[where[0]].clamp(min=0))

    def count_forced(self, row: GpuRow) -> None:
        """Count what a grammar forced since the last time."""
        if row.uncounted and row.params.penalised:
            n = len(row.uncounted)
            self._add(self._ints([row.index] * n), self._ints(row.uncounted))
        row.uncounted.clear()

    def _add(self, rows: Tensor, tokens: Tensor) -> None:
        two = torch.full_like(tokens, 2, dtype=torch.int32)
        self.table.index_put_((rows, tokens), two, accumulate=True)

    def _ints(self, values: Sequence[int]) -> Tensor:
        return self._device.upload(np.array(values, np.int64))


def adjust(
    ops: Ops,
    device: Device,
    logits: Tensor,
    wanted: Sequence[Wanted],
    histories: Histories,
    masks: Masks | None,
) -> None:
    """Change logits [L >= wanted, V] by penalties, bias, minimum length and the grammars' masks.

    Where the grammar allows only what bias or minimum length forbid, the grammar is right.
    """
    biases = [item.row.biases(item.length) for item in wanted]
    masked = [i for i, item in enumerate(wanted) if item.row.grammar.matcher is not None]
    mask_row = {i: m for m, i in enumerate(masked)} if masks is not None else {}
    changed = [
        i
        for i, item in enumerate(wanted)
        if i in mask_row or biases[i] or item.row.params.penalised
    ]
    if not changed:
        return
    mask = np.zeros((0, 1), np.int32) if masks is None else masks.mask.numpy()
    table = device.upload(mask)
    both = [i for i in masked if biases[i] or wanted[i].row.params.penalised]
    at_both = device.upload(np.array(both, np.int64))
    before = logits[at_both] if both else None
    ops.adjust_logits(
        logits, _adjustments(device, wanted, changed, biases, mask_row, histories, table)
    )
    if before is not None:
        words = table[device.upload(np.array([mask_row[i] for i in both], np.int64))]
        ops.mask_logits(before, device.upload(np.arange(len(both))), words)
        after = logits[at_both]
        nothing = after.amax(-1, keepdim=True) == NEVER
        logits[at_both] = torch.where(nothing, before, after)


def adjust_nothing(ops: Ops, device: Device, logits: Tensor) -> None:
    """Launch what `adjust` may launch, on logits [L, V], and change none."""
    row = device.upload(np.zeros(1, np.int64))
    nobody = device.upload(np.full(1, -1, np.int32))
    one, zero = (device.upload(np.full(1, x, np.float32)) for x in (1, 0))
    mask = device.upload(np.full((1, -(-logits.shape[1] // 32)), -1, np.int32))
    history = torch.zeros(0, logits.shape[1], dtype=torch.int32, device=logits.device)
    ops.adjust_logits(
        logits,
        Adjustments(row, nobody, nobody, one, zero, zero, history, mask, row, row, zero),
    )
    ops.mask_logits(logits, row, mask)


def _adjustments(
    device: Device,
    wanted: Sequence[Wanted],
    changed: Sequence[int],
    biases: Sequence[dict[int, float]],
    mask_row: dict[int, int],
    histories: Histories,
    mask: Tensor,
) -> Adjustments:
    def numbers(dtype: type[np.generic], values: Sequence[float]) -> Tensor:
        return device.upload(np.array(values, dtype))

    rows = [wanted[i].row for i in changed]
    params = [row.params for row in rows]
    single = [(i, token, bias) for i in changed for token, bias in biases[i].items()]
    return Adjustments(
        rows=numbers(np.int64, changed),
        history_rows=numbers(np.int32, [r.index if r.params.penalised else -1 for r in rows]),
        mask_rows=numbers(np.int32, [mask_row.get(i, -1) for i in changed]),
        repetition=numbers(np.float32, [p.repetition_penalty for p in params]),
        frequency=numbers(np.float32, [p.frequency_penalty for p in params]),
        presence=numbers(np.float32, [p.presence_penalty for p in params]),
        history=histories.table,
        mask=mask,
        bias_rows=numbers(np.int64, [i for i, _, _ in single]),
        bias_tokens=numbers(np.int64, [token for _, token, _ in single]),
        bias=numbers(np.float32, [bias for _, _, bias in single]),
    )


def log_probabilities(raw: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(that of each token, the `top` largest, their tokens) of raw logits [S, V], tokens [S]."""
    logprobs = raw.log_softmax(-1)
    chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None]).squeeze(-1)
    values, ids = logprobs.topk(top)
    return chosen, values, ids
