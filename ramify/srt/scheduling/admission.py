"""Who starts next, whether there is room for it, and who must stop when pages run out.

Admission reserves pages for all of a request's present tokens, so a prefill never stalls half way;
decodes grow page by page, and when that fails a running request is retracted.
"""

from collections.abc import Mapping

from ramify.radix_cache.key import common_prefix
from ramify.radix_cache.prefix_cache import Lease, PrefixCache
from ramify.srt.scheduling.request import Request, State
from ramify.srt.scheduling.waiting import LOOKS, WaitingQueue

HEADROOM_TOKENS = 64  # kept for each decoding request to grow, so that admitting seldom retracts

Requests = Mapping[str, Request]


def choose(
    waiting: WaitingQueue, running: Requests, cache: PrefixCache, headroom: int
) -> Request | None:
    """The waiting request to admit, its pages leased; None if nobody may start now.

    When the first in line does not fit, nobody overtakes it on that ground. `headroom` pages are
    left to those who run: see `headroom_pages`.
    """
    request = first_in_line(waiting, running, cache)
    if request is not None:
        request.lease = _lease(request, running, cache, headroom)
    return None if request is None or request.lease is None else request


def first_in_line(waiting: WaitingQueue, running: Requests, cache: PrefixCache) -> Request | None:
    """Who is to start next, room or not. On the way, parks those who had better wait.

    Whoever is overdue waits for nothing: it goes with what is there.
    """
    prefills = [r for r in running.values() if r.state is State.PREFILL] if cache.reuse else []
    for _ in range(LOOKS):  # parking can end an account's turn
        overdue = waiting.aging.overdue()
        if overdue is not None:
            waiting.refresh(overdue)
            return overdue
        request = waiting.order.first()
        if request is None:
            return None
        if waiting.refresh(request):
            continue  # it may not be the first any more
        blocker, shared = blocker_of(request, prefills, cache.page_size)
        if blocker is not None:
            waiting.park(request, blocker, shared)
        elif not waiting.fetch(request):
            return request
    return None if running else waiting.order.first()  # the others: in the next step


def blocker_of(
    request: Request, prefills: list[Request], page_size: int
) -> tuple[Request | None, int]:
    """(a prefill that computes a trunk which this request would compute again, its length)."""
    namespace, tokens = request.submit.namespace, request.tokens
    for other in prefills:
        if other.submit.namespace == namespace and other.tokens[0] == tokens[0]:
            shared = common_prefix(tokens, 0, other.tokens, 0, request.reuse_limit)
            if shared > other.computed and shared - request.hit >= page_size:
                return other, shared
    return None, 0


def victim(running: Requests, by_priority: bool) -> Request:
    """Who is retracted: the latest arrival (of the lowest priority). So the first one gets on."""
    return max(running.values(), key=lambda r: (-r.submit.priority if by_priority else 0, r.number))


def preempted(
    request: Request, running: Requests, cache: PrefixCache, full: bool, bound: int
) -> Request | None:
    """Who is retracted so that the first in line may start: None if it has room, or no right.

    Only requests of strictly smaller priority make way, and none that was overtaken `bound` times:
    it would go before everybody at once, and the two would take turns for ever. Nor does one of
    another account: what clients say of their requests ranks their own.
    """
    headroom = headroom_pages(running, cache.page_size)
    if not full and has_room(request, running, cache, headroom):
        return None
    smaller = {
        r.id: r
        for r in running.values()
        if r.submit.priority < request.submit.priority
        and r.overtaken < bound
        and r.submit.account == request.submit.account
    }
    return victim(smaller, by_priority=True) if smaller else None


def headroom_pages(running: Requests, page_size: int) -> int:
    """Pages that the decoding requests will soon want."""
    decoding = (r for r in running.values() if r.state is State.DECODE)
    wanted = (min(HEADROOM_TOKENS, r.max_new_tokens - r.n_output) for r in decoding)
    return sum(-(-n // page_size) for n in wanted)


def has_room(request: Request, running: Requests, cache: PrefixCache, headroom: int) -> bool:
    """Whether the request's pages can likely be had. Changes nothing."""
    have = request.hit_on_device // cache.page_size
    likely = cache.pages_for(len(request.tokens)) - have + headroom
    return not running or likely <= cache.pages.n_available


def _lease(request: Request, running: Requests, cache: PrefixCache, headroom: int) -> Lease | None:
    """The cached prefix and pages for all tokens; None, and nothing held, if there is no room."""
    if not has_room(request, running, cache, headroom):
        return None  # do not disturb the tree to find out for certain
    submit, n_tokens = request.submit, len(request.tokens)
    # Alone, a request always fits the pool, but perhaps not beside the path it matched: branch
    # points inside pages pin more of them than it needs. Then it starts from nothing.
    for limit in (request.reuse_limit,) if running else (request.reuse_limit, 0):
        lease = cache.acquire(
            submit.namespace, request.tokens, limit, submit.priority, request.page_keys
        )
        need = cache.pages_for(n_tokens) - len(lease.table)
        if need + headroom <= cache.pages.n_available and cache.ensure(lease, n_tokens):
            return lease
        cache.release(lease)
    return None
