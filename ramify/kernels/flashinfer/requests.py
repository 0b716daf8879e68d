"""A work list in the terms of FlashInfer's paged prefill: a batch of requests, causal or not.

There a request is some query rows against a run of keys that begins with a page. Without a causal
limit each row sees all keys. With one the last row sees all of them, and each row before it one key
less than the next. So an item is cut where the number of keys that its rows see does neither:

    item: keys 0 .. 4      positions  1 2 3 4 9 9 7     request    rows   keys   causal
                           keys seen  2 3 4 5 5 5 5     the first  1234   0..4   yes
                                      -causal  -all-    the rest   997    0..4   no

Trunks and decode rows come out as one request that is not causal, chunks of prompts as one that is;
but any list is translated exactly. A row that sees no key of an item is in no request.

A request's keys end with the last one that its rows see, which may be before the end of the item.

A window counts from a row's own position, which the library takes to be the last key of a request.
So a row that comes after its request's keys may have one only if that window cuts none of them.

Pure: tensors of the host in, integers out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ramify.kernels.work_list import DIRECT, Item, WorkList


@dataclass(frozen=True, slots=True)
class Requests:
    """One batch for the library, and what its rows are. Rows that need no merge come first."""

    qo_indptr: list[int]  # [n + 1]: where each request's rows begin, and the end of the last
    kv_indptr: list[int]  # [n + 1]: the same of its pages in kv_indices
    kv_indices: list[int]  # page ids
    last_page_len: list[int]  # [n]: keys in the last page, 1 .. P
    tokens: list[int]  # query token of each row
    partials: list[int]  # partial result of each row beyond the first n_direct
    n_direct: int  # rows whose result is that of their token


class _Request(NamedTuple):
    """Sorted: those without partials first, then by token, so that a step may need no gathering."""

    partial_begin: int  # or DIRECT, which is less than any
    tokens: tuple[int, ...]
    page_begin: int
    n_keys: int


def requests_of(work: WorkList, page_size: int, window: int = 0) -> tuple[Requests, Requests]:
    """(the causal requests, the others) of a work list whose tensors are on the host.

    Raises ValueError for an item that begins inside a page, and for a window that cuts keys off
    which end before the row that sees them: the library has no words for either.
    """
    positions, rows = work.positions.tolist(), work.rows.tolist()
    pages: list[int] = work.pages.tolist()
    of_kind: dict[bool, list[_Request]] = {True: [], False: []}
    for raw in work.items.tolist():
        item = Item(*raw)
        if item.row_count and item.key_begin % page_size:
            raise ValueError(f"an item must begin with a page of {page_size} keys, got {item}")
        tokens = rows[item.row_begin : item.row_begin + item.row_count]
        places = [positions[token] for token in tokens]
        for first, last, n_keys, causal in _runs(item, places):
            if window:
                mine = places[first:last]
                causal = _causal_under_window(item.key_begin, mine, n_keys, causal, window)
            partial = DIRECT if item.partial_begin == DIRECT else item.partial_begin + first
            request = _Request(partial, tuple(tokens[first:last]), item.page_begin, n_keys)
            of_kind[causal].append(request)
    causal_ones, others = (_lay_out(sorted(of_kind[kind]), pages, page_size) for kind in of_kind)
    return causal_ones, others


def _runs(item: Item, positions: Sequence[int]) -> Iterator[tuple[int, int, int, bool]]:
    """(first row, end, keys seen by the last, whether each sees one more than the one before)."""
    end = item.key_begin + item.key_count
    seen = [min(position + 1, end) - item.key_begin for position in positions]
    first, rows = 0, len(seen)
    while first < rows:
        last = first + 1
        if seen[first] > 0:
            more = int(last < rows and seen[last] == seen[first] + 1)
            while last < rows and seen[last] == seen[last - 1] + more:
                last += 1
            yield first, last, seen[last - 1], more == 1
        first = last


def _causal_under_window(
    key_begin: int, positions: Sequence[int], n_keys: int, causal: bool, window: int
) -> bool:
    """Whether a run of rows is to be asked for with the window, and then with a causal limit.

    For rows at the end of their keys the library's window is ours.
    """
    last_key = key_begin + n_keys - 1
    if positions[-1] == last_key and (causal or len(positions) == 1):
        return True
    if max(positions) - window < key_begin:  # it cuts nothing, wherever the library thinks it ends
        return causal
    raise ValueError(
        f"FlashInfer cannot be asked for a window of {window} keys over the keys {key_begin} .. "
        f"{last_key} of positions {positions[0]} .. {positions[-1]}; do not share them, or take "
        "another backend"
    )


def _lay_out(requests: Sequence[_Request], pages: Sequence[int], page_size: int) -> Requests:
    qo_indptr, kv_indptr = [0], [0]
    kv_indices: list[int] = []
    tokens: list[int] = []
    partials: list[int] = []
    for request in requests:
        tokens += request.tokens
        n_pages = -(-request.n_keys // page_size)
        kv_indices += pages[request.page_begin : request.page_begin + n_pages]
        qo_indptr.append(len(tokens))
        kv_indptr.append(len(kv_indices))
        if request.partial_begin != DIRECT:
            begin = request.partial_begin
            partials += range(begin, begin + len(request.tokens))
    last_page_len = [(request.n_keys - 1) % page_size + 1 for request in requests]
    n_direct = len(tokens) - len(partials)
    return Requests(qo_indptr, kv_indptr, kv_indices, last_page_len, tokens, partials, n_direct)
