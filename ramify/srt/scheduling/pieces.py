"""How much of a request goes into a step, and as what.

A budget is in tokens at the beginning of a prompt. Beside decoding requests a token deep in a
prompt takes more of it, for it reads everything that is before it:

    tokens of a piece    40 ....... 27 ....... 20 ....... 16       for a budget of 40
    depth                0        2,048      4,096      6,144      LINEAR_WORK = 4,096
"""

from array import array

from ramify.radix_cache.eviction import LINEAR_WORK
from ramify.srt.scheduling.plan import Chunk
from ramify.srt.scheduling.request import Request

UNKNOWN = array("I", [0])  # holds the place of a token that is being sampled


def affordable(request: Request, budget: int, weigh: bool) -> int:
    """How many of the request's next tokens a budget pays for; at least one."""
    if not weigh:
        return budget
    return -(-budget * LINEAR_WORK // (LINEAR_WORK + request.launched))


def weight(chunk: Chunk, weigh: bool) -> int:
    """What a chunk takes of a budget: see `eviction.LINEAR_WORK`."""
    n = len(chunk.tokens)
    return n * (LINEAR_WORK + chunk.start) // LINEAR_WORK if weigh else n


def next_chunk(request: Request, budget: int, *, jump_forward: bool) -> Chunk:
    """The request's next tokens, at most `budget`, as a chunk; they count as launched from now."""
    start = request.launched
    end = min(start + budget, request.length)
    first, targets = _targets(request, start, end)
    samples = end == request.length and request.max_new_tokens > 0
    request.launched = end
    request.ahead += samples
    return Chunk(
        request_id=request.id,
        admission=request.admission,
        start=start,
        tokens=request.tokens[start:end] or UNKNOWN,
        pages=tuple(request.held_lease.table),
        samples=samples,
        first_target_row=first,
        targets=targets,
        follows=start >= len(request.tokens),
        max_forced=request.max_forced if samples and jump_forward else 0,
    )


def _targets(request: Request, start: int, end: int) -> tuple[int, tuple[int, ...]]:
    """(first row, tokens) that rows start .. end - 1 score: row p scores token p + 1."""
    wanted = request.unscored
    if not wanted:
        return 0, ()
    first = max(start + 1, wanted.start)
    return first - 1 - start, tuple(request.tokens[first : min(end + 1, wanted.stop)])
