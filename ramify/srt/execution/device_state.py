"""What the device knows of the requests that run: a row each, and a spare one for filling up.

Everything is in one tensor of int32 words, a run of it for each field, so that any number of
changes, to any fields, is one upload and one scatter:

    top_p | seed | last_token | position | temperature | top_k | min_p | pages
    each [rows + 1]                                                      [rows + 1, width]

The host knows every number here but `last_token`: a step that samples writes it, and moves
`position` on. The spare row stays at position 0, and its pages are the spare page.
"""

import numpy as np
import torch
from torch import Tensor

from ramify.srt.execution.device import Device
from ramify.srt.execution.graph_buckets import ALIGNED, Tables
from ramify.srt.sampling_params import SamplingParams

FIELDS = {
    "top_p": torch.float64,  # wide ones first: they begin at even words
    "seed": torch.int64,
    "last_token": torch.int32,
    "position": torch.int32,
    "temperature": torch.float32,
    "top_k": torch.int32,
    "min_p": torch.float32,
}
_NUMPY = {
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.float32: np.float32,
}


class DeviceState:
    """The tables of `n_rows` requests. Changes are collected, and written by `flush`."""

    def __init__(self, device: Device, n_rows: int, tables: Tables, spare_page: int) -> None:
        self.tables = tables
        self._device = device
        self._begin: dict[str, int] = {}
        at = 0
        for name, dtype in FIELDS.items():
            self._begin[name] = at
            at += (n_rows + 1) * (dtype.itemsize // 4)
        self._pages = at + -at % ALIGNED
        size = self._pages + (n_rows + 1) * tables.width
        self.words = torch.zeros(size, dtype=torch.int32, device=device.torch_device)
        self.top_p = self._field("top_p", n_rows + 1)
        self.seed = self._field("seed", n_rows + 1)
        self.last_token = self._field("last_token", n_rows + 1)
        self.position = self._field("position", n_rows + 1)
        self.temperature = self._field("temperature", n_rows + 1)
        self.top_k = self._field("top_k", n_rows + 1)
        self.min_p = self._field("min_p", n_rows + 1)
        self.page_table = self.words[self._pages :].view(n_rows + 1, tables.width)
        self._changes: dict[int, int] = {}  # by address: no address may come twice in a scatter
        self.put("top_p", n_rows, 1.0)
        self.put("top_k", n_rows, -1)
        self.put_pages(n_rows, 0, [spare_page] * tables.width)
        self.flush()

    def _field(self, name: str, n: int) -> Tensor:
        dtype, begin = FIELDS[name], self._begin[name]
        return self.words[begin : begin + n * (dtype.itemsize // 4)].view(dtype)

    def put(self, field: str, row: int, value: float) -> None:
        """Change one number of a row, at the next `flush`."""
        words = np.array([value], _NUMPY[FIELDS[field]]).view(np.int32).tolist()
        at = self._begin[field] + row * len(words)
        for i, word in enumerate(words):
            self._changes[at + i] = word

    def put_pages(self, row: int, first: int, pages: "list[int] | tuple[int, ...]") -> None:
        """Change pages first, first + 1, ... of a row's table, at the next `flush`."""
        at = self._pages + row * self.tables.width + first
        for i, page in enumerate(pages):
            self._changes[at + i] = page

    def put_sampling(self, row: int, params: SamplingParams) -> None:
        """Change how a row draws its tokens. Temperature 0 takes the likeliest."""
        self.put("temperature", row, 0.0 if params.greedy else params.temperature)
        self.put("top_k", row, params.top_k)
        self.put("top_p", row, params.top_p)
        self.put("min_p", row, params.min_p)
        self.put("seed", row, params.sampling_seed or 0)

    def flush(self) -> None:
        """Write the changes, after what the device has been given so far."""
        if not self._changes:
            return
        n = len(self._changes)
        changes = (
            np.fromiter(self._changes.keys(), np.int32, n),
            np.fromiter(self._changes.values(), np.int32, n),
        )
        where, what = self._device.upload(np.stack(changes))
        self.words[where.long()] = what
        self._changes.clear()
