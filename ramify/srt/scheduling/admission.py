"""Who starts next, whether there is room for it, and who must stop when pages run out.

Admission reserves pages for all of a request's present tokens, so a prefill never stalls half way;
decodes grow page by page, and when that fails the latest arrival is retracted.
"""

from collections.abc import Mapping

from ramify.radix_cache.key import common_prefix
from ramify.radix_cache.prefix_cache import Lease, PrefixCache
from ramify.srt.scheduling import queue_policy
from ramify.srt.scheduling.request import Request, State

HEADROOM_TOKENS = 64  # kept for each decoding request to grow, so that admitting seldom retracts
REMATCHES = 128  # waiting requests whose cached prefix is looked up again in one go

Requests = Mapping[str, Request]


def choose(waiting: Requests, running: Requests, cache: PrefixCache, bound: int) -> Request | None:
    """The waiting request to admit, its pages leased; None if nobody may start now.

    When the first in line does not fit, nobody overtakes it on that ground.
    """
    refresh_hits(waiting, cache)
    for request in queue_policy.in_order(waiting.values(), bound):
        if request.overtaken >= bound or not held(request, running, cache):
            request.lease = _lease(request, running, cache)
            return request if request.lease is not None else None
    return None


def victim(running: Requests) -> Request:
    """Who is retracted: the latest arrival. So the oldest request always gets on."""
    return max(running.values(), key=lambda r: r.number)


def refresh_hits(waiting: Requests, cache: PrefixCache) -> None:
    """Look up cached prefixes again where the tree has changed since; bounded work."""
    version = cache.tree.version
    stale = [r for r in waiting.values() if r.hit_version != version][:REMATCHES]
    for request in stale:
        namespace = request.submit.namespace
        request.hit = cache.hit_length(namespace, request.tokens, request.reuse_limit)
        request.hit_version = version


def held(request: Request, running: Requests, cache: PrefixCache) -> bool:
    """True while a running prefill computes a trunk that this request would compute again."""
    if not cache.reuse:
        return False
    for other in running.values():
        if other.state is State.PREFILL and other.submit.namespace == request.submit.namespace:
            limit = request.reuse_limit
            shared = common_prefix(request.tokens, 0, other.tokens, 0, limit)
            if shared > other.computed and shared - request.hit >= cache.page_size:
                return True
    return False


def headroom_pages(running: Requests, page_size: int) -> int:
    """Pages that the decoding requests will soon want."""
    decoding = (r for r in running.values() if r.state is State.DECODE)
    wanted = (min(HEADROOM_TOKENS, r.max_new_tokens - r.n_output) for r in decoding)
    return sum(-(-n // page_size) for n in wanted)


def _lease(request: Request, running: Requests, cache: PrefixCache) -> Lease | None:
    """The cached prefix and pages for all tokens; None, and nothing held, if there is no room."""
    n_tokens = len(request.tokens)
    headroom = headroom_pages(running, cache.page_size)
    likely = cache.pages_for(n_tokens) - request.hit // cache.page_size + headroom
    if running and likely > cache.pages.n_available:
        return None  # do not disturb the tree to find out for certain
    # Alone, a request always fits the pool, but perhaps not beside the path it matched: branch
    # points inside pages pin more of them than it needs. Then it starts from nothing.
    for limit in (request.reuse_limit,) if running else (request.reuse_limit, 0):
        lease = cache.acquire(request.submit.namespace, request.tokens, limit)
        need = cache.pages_for(n_tokens) - len(lease.table)
        if need + headroom <= cache.pages.n_available and cache.ensure(lease, n_tokens):
            return lease
        cache.release(lease)
    return None
