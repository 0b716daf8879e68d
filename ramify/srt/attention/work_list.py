"""Plan a step's attention from the page tables alone: shared trunks once, long runs in pieces.

Requests whose page tables begin with the same pages share a trunk. Sorted, such tables are
neighbours, and the trunks form a tree:

    A  [7 8 9 2]         7 8            item: rows A B C,  pages 7 8
    B  [7 8 9 4 5]         |- 9         item: rows A B,    page 9
    C  [7 8 3]             |  |- A      item: row A,       page 2
    D  [6]                 |  `- B      item: row B,       pages 4 5
                           `- C         item: row C,       page 3
                         6              item: row D,       page 6: its only one, written directly

Only pages wholly before a run's first query are shared, so a trunk item needs no causal limit.

Long key runs are cut into parts, whose partial results are merged. For the threads of a CPU: while
there are few items. For a GPU, which takes on all items of a kind at once and is done when the
longest is: so that none is much longer than what each program would get if all got the same. It is
told how many programs of one K/V head run at once.

    few rows    `programs` of them      no part has more keys than the mean of the programs
    more rows   a quarter as many, as   parts are shorter than two means: these write many partial
                they fill a processor   results, so they are cut only where programs would idle

The work of an item is its keys, for each program that its rows take; `room_for_parts` bounds what
cutting adds, so that a list of fixed size can have room for it.

Pure: integers and tuples. `ramify.kernels.work_list` says what the items mean to a kernel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIN_SHARED_TOKENS = 64  # a shorter trunk costs more in merging than it saves in reading
MIN_SPLIT_KEYS = 256  # a shorter piece of a key run is not worth a partial result
MAX_SPLIT_ROWS = 16  # an item of more rows is work enough for all threads

# On a GPU. Rows are pairs there with the query heads of a K/V head, of which four are usual.
FEW_ROWS = 4  # an item of more is worked on in large tiles
TILE_ROWS = 32  # rows of an item that one program takes in large tiles
SIDE_BY_SIDE = 4  # programs in small tiles that run where one in large tiles does
MIN_FEW_KEYS = 128  # a part of fewer keys is not worth a program and its partial results
MIN_MANY_KEYS = 256

Item = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class QueryRun:
    """Query tokens first_row, first_row + 1, ... of the step, at positions start, start + 1, ...

    `pages` is the page table of their sequence; keys 0 .. start + n_rows - 1 are in it.
    """

    first_row: int
    n_rows: int
    start: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """A work list as plain integers: see `ramify.kernels.work_list.make_work_list`."""

    items: list[Item]
    rows: list[int]
    pages: list[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries of some runs against keys key_begin .. key_end - 1, in the pages of the first run."""

    members: tuple[int, ...]  # indices of runs
    key_begin: int
    key_end: int

    @property
    def n_keys(self) -> int:
        return self.key_end - self.key_begin

    def parts(self, step: int) -> Iterator["Piece"]:
        """The piece in parts of `step` keys and a rest."""
        for begin in range(self.key_begin, self.key_end, step):
            yield Piece(self.members, begin, min(begin + step, self.key_end))


def plan_items(
    runs: Sequence[QueryRun],
    page_size: int,
    *,
    share: bool = True,
    min_items: int = 1,
    programs: int = 0,
) -> Items:
    """The items of a step: `plan_pieces`, laid out."""
    pieces = plan_pieces(runs, page_size, share=share, min_items=min_items, programs=programs)
    return _lay_out(runs, pieces, page_size)


def plan_pieces(
    runs: Sequence[QueryRun],
    page_size: int,
    *,
    share: bool = True,
    min_items: int = 1,
    programs: int = 0,
) -> list[Piece]:
    """What is read together. If that is few, long key runs are cut until about min_items result.

    With `programs` they are cut so that as many, running at once, are done at about the same time.
    """
    order = sorted(range(len(runs)), key=lambda i: runs[i].pages)
    pieces = (
        list(_branches(runs, tuple(order), 0, 0, page_size))
        if share and len(runs) > 1
        else [Piece((i,), 0, _end(runs[i])) for i in order]
    )
    if programs:
        pieces = list(_balanced(runs, pieces, programs, page_size))
    elif len(pieces) < min_items:
        pieces = [part for piece in pieces for part in _cut(runs, piece, min_items, page_size)]
    return pieces


def _end(run: QueryRun) -> int:
    return run.start + run.n_rows


def _branches(
    runs: Sequence[QueryRun], members: tuple[int, ...], begin: int, at: int, page_size: int
) -> Iterator[Piece]:
    """Pieces for `members`, whose sorted tables agree before page `at`, from page `begin` on."""
    for group in _by_page(runs, members, at, page_size):
        if len(group) == 1:
            yield Piece(group, begin * page_size, _end(runs[group[0]]))
            continue
        # sorted tables: what the first and the last have in common, all have in common
        least = min(runs[i].start // page_size for i in group)
        end = _common(runs[group[0]].pages, runs[group[-1]].pages, at, least)
        if (end - begin) * page_size >= MIN_SHARED_TOKENS:
            yield Piece(group, begin * page_size, end * page_size)
            yield from _branches(runs, group, end, end, page_size)
        else:  # too short by itself; a part of the group may agree on more
            yield from _branches(runs, group, begin, end, page_size)


def _by_page(
    runs: Sequence[QueryRun], members: tuple[int, ...], at: int, page_size: int
) -> Iterator[tuple[int, ...]]:
    """Split sorted members by their page number `at`; alone are those it is not past for."""
    groups: dict[int, list[int]] = {}
    for i in members:
        if runs[i].start // page_size <= at:
            yield (i,)
        else:
            groups.setdefault(runs[i].pages[at], []).append(i)
    yield from map(tuple, groups.values())


def _common(a: tuple[int, ...], b: tuple[int, ...], begin: int, end: int) -> int:
    """The first index in begin .. end at which the tables differ, or `end`."""
    if a[begin:end] == b[begin:end]:
        return end
    return next(k for k in range(begin, end) if a[k] != b[k])


def _cut(runs: Sequence[QueryRun], piece: Piece, min_items: int, page_size: int) -> Iterator[Piece]:
    """The piece in parts of whole pages, if it has few rows: kernels divide many themselves."""
    if _n_rows(runs, piece) > MAX_SPLIT_ROWS:
        yield piece
        return
    step = max(_ceil_div(piece.n_keys, min_items), MIN_SPLIT_KEYS)
    yield from piece.parts(_whole_pages(step, page_size))


def _balanced(
    runs: Sequence[QueryRun], pieces: Sequence[Piece], programs: int, page_size: int
) -> Iterator[Piece]:
    """The pieces in parts of whole pages, each in equal ones, as the module docstring says."""
    rows = [_n_rows(runs, piece) for piece in pieces]
    few_work = many_work = 0
    for n, piece in zip(rows, pieces, strict=True):
        if n <= FEW_ROWS:
            few_work += piece.n_keys
        else:
            many_work += piece.n_keys * _ceil_div(n, TILE_ROWS)
    few = max(_ceil_div(few_work, programs), MIN_FEW_KEYS)
    many = max(_ceil_div(many_work, _ceil_div(programs, SIDE_BY_SIDE)), MIN_MANY_KEYS)
    few, many = _whole_pages(few, page_size), _whole_pages(many, page_size)
    for n, piece in zip(rows, pieces, strict=True):
        parts = _ceil_div(piece.n_keys, few) if n <= FEW_ROWS else max(piece.n_keys // many, 1)
        yield from piece.parts(_whole_pages(_ceil_div(piece.n_keys, parts), page_size))


def room_for_parts(programs: int) -> tuple[int, int]:
    """The most (items, rows in them) that cutting for so many programs adds to a plan.

    Parts of few rows are at least as long as the mean of `programs`, so there are no more than
    that on top of the uncut ones; in the same way for more rows, of which a mean has TILE_ROWS.
    """
    many = _ceil_div(programs, SIDE_BY_SIDE)
    return programs + many, FEW_ROWS * programs + TILE_ROWS * many


def _n_rows(runs: Sequence[QueryRun], piece: Piece) -> int:
    return sum(runs[i].n_rows for i in piece.members)


def _ceil_div(n: int, size: int) -> int:
    return -(-n // size)


def _whole_pages(keys: int, page_size: int) -> int:
    """The number of keys rounded up to pages."""
    return _ceil_div(keys, page_size) * page_size


def times_used(pieces: Sequence[Piece], n_runs: int) -> list[int]:
    """In how many pieces each run is: the results of those in one alone need no merge."""
    uses = [0] * n_runs
    for piece in pieces:
        for i in piece.members:
            uses[i] += 1
    return uses


def _lay_out(runs: Sequence[QueryRun], pieces: list[Piece], page_size: int) -> Items:
    uses = times_used(pieces, len(runs))
    items: list[Item] = []
    rows: list[int] = []
    pages: list[int] = []
    n_partials = 0
    for piece in pieces:
        row_begin, page_begin = len(rows), len(pages)
        for i in piece.members:
            # rows that come before the piece's first key see none of it
            skipped = max(piece.key_begin - runs[i].start, 0)
            rows += range(runs[i].first_row + skipped, runs[i].first_row + runs[i].n_rows)
        first_page, end_page = piece.key_begin // page_size, _ceil_div(piece.key_end, page_size)
        pages += runs[piece.members[0]].pages[first_page:end_page]
        n_rows = len(rows) - row_begin
        direct = uses[piece.members[0]] == 1
        partial = -1 if direct else n_partials
        items.append((row_begin, n_rows, page_begin, piece.key_begin, piece.n_keys, partial))
        n_partials += 0 if direct else n_rows
    return Items(items, rows, pages)
