"""Steps that nobody asked for, one of every kind: what is launched once is compiled for good.

    one token                       items of one row, written directly
    one token far into a sequence   a key run in pieces, and their merge
    a few tokens                    an item of some rows
    as many as a step may have      chunks with a trunk in common: all forms of items, and the merge
                                    of many tokens; and as much memory as a step may take

Pure: integers and tuples. All pages are the spare one.
"""

from array import array
from collections.abc import Iterator

from ramify.srt.attention.work_list import MIN_SHARED_TOKENS, MIN_SPLIT_KEYS
from ramify.srt.scheduling.plan import Chunk

FEW = 24


def warm_up_steps(
    step_tokens: int, longest: int, page_size: int, spare_page: int
) -> Iterator[tuple[Chunk, ...]]:
    """Steps of at most `step_tokens` tokens, of sequences of at most `longest`."""

    def chunk(start: int, n: int) -> Chunk:
        pages = (spare_page,) * -(-(start + n) // page_size)
        return Chunk("", 0, start, array("I", bytes(4 * n)), pages, True)

    yield (chunk(0, 1),)
    yield (chunk(min(4 * MIN_SPLIT_KEYS, longest) - 1, 1),)
    yield (chunk(0, min(FEW, step_tokens, longest)),)
    trunk = -(-MIN_SHARED_TOKENS // page_size) * page_size
    start = trunk if trunk < longest else 0
    most = min(longest - start, -(-step_tokens // 2))
    sizes = [min(most, step_tokens - begin) for begin in range(0, step_tokens, most)]
    yield tuple(chunk(start, n) for n in sizes)
