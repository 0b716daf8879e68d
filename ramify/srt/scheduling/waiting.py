"""The waiting requests, so arranged that a step looks at few of them however many there are.

    add --> [ in line: Order ] ---- looked at, its trunk is being computed ---> [ parked ]
                 ^   |  |                                                          |
                 |   |  `- its prefix is on disk: once -> [ fetching ] -. trunk is there, or the
                 |   |                                                  |   prefill is gone
                 |   `--> admitted                              it is read         |
                 |                                                      v          v
                 `------------------------ at most LOOKS a step ------------ [ returning ]

Every waiting request is in `requests` and in `aging`, and in exactly one of the four boxes. What it
fetched is kept in host memory until it starts or ends. Cached prefixes are looked up again for
whoever comes to the front, and for the others in turn.
"""

from collections import OrderedDict
from collections.abc import ValuesView
from itertools import islice

from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.scheduling.aging import Aging
from ramify.srt.scheduling.lazy_heap import LazyHeap
from ramify.srt.scheduling.order import Order
from ramify.srt.scheduling.queue_policy import Policy
from ramify.srt.scheduling.request import Request, State
from ramify.srt.scheduling.shares import Shares

LOOKS = 64  # requests moved or looked up again in one step, for each of the two
Waiters = LazyHeap[Request]  # on one prefill, the shortest shared trunk first


class WaitingQueue:
    """Requests that hold no pages, in the order of a policy. `n_tokens`: of their prompts."""

    def __init__(self, policy: Policy, bound: int, cache: PrefixCache) -> None:
        self.requests: dict[str, Request] = {}
        shares = Shares()
        self.order = Order(policy, shares)
        self.aging = Aging(bound, shares)
        self.n_tokens = 0
        self._by_hit = policy.by_hit
        self._cache = cache
        self._parked: dict[int, tuple[Request, Waiters]] = {}  # by the prefill's number
        self._fetching: dict[int, Request] = {}
        self._returning: dict[int, Request] = {}
        # if the order depends on hits: the one looked up longest ago first
        self._by_age_of_hit: OrderedDict[int, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.requests

    def get(self, request_id: str) -> Request | None:
        return self.requests.get(request_id)

    def values(self) -> ValuesView[Request]:
        return self.requests.values()

    def add(self, request: Request) -> None:
        """Put a new or retracted request in line."""
        self.requests[request.id] = request
        self.n_tokens += request.prompt_length
        self.aging.add(request)
        if self._by_hit:
            self._by_age_of_hit[request.number] = request
        request.hit_version = -1
        request.fetched = False
        if request.page_keys is None:
            request.page_keys = self._cache.page_keys(request.submit.namespace)
        self._line_up(request)

    def remove(self, request: Request) -> None:
        """It is over before it ran (again)."""
        self.aging.remove(request)
        self._forget(request)

    def admit(self, request: Request) -> None:
        """It starts; whoever came before it and waits on has been overtaken once more."""
        if request.number in self.order:
            self.order.went(request)
        self.aging.admit(request)
        self._forget(request)

    def begin_step(self) -> None:
        """Let those back in line who have what they waited for, and look some hits up again."""
        for blocker, waiters in list(self._parked.values()):
            self._release(blocker, waiters)
        for request in list(self._fetching.values()):
            if request.fetch is None or not request.fetch.pending:
                self._returning[request.number] = self._fetching.pop(request.number)
        for request in list(islice(self._returning.values(), LOOKS)):
            del self._returning[request.number]
            self._line_up(request)
        for request in list(islice(self._by_age_of_hit.values(), LOOKS)):
            if not self.refresh(request):
                break

    def refresh(self, request: Request) -> bool:
        """Look up the cached prefix again if the tree has changed. False if it had not."""
        version = self._cache.version
        if request.hit_version == version:
            return False
        before = request.hit
        namespace = request.submit.namespace
        request.hit_on_device, request.hit = self._cache.hit_lengths(
            namespace, request.tokens, request.reuse_limit, request.page_keys
        )
        request.hit_version = version
        if self._by_hit:
            self._by_age_of_hit.move_to_end(request.number)
            if request.hit != before and request.number in self.order:
                self.order.rekey(request)
        return True

    def park(self, request: Request, blocker: Request, shared: int) -> None:
        """Out of line until `blocker` has computed the `shared` tokens, or no longer tries to."""
        self.order.remove(request)
        request.blocker, request.shared = blocker, shared
        if blocker.number not in self._parked:
            self._parked[blocker.number] = blocker, LazyHeap(lambda r: r.shared)
        self._parked[blocker.number][1].put(request.number, request)

    def fetch(self, request: Request) -> bool:
        """Out of line while its prefix is read from disk. False if there is nothing to wait for."""
        if request.fetched:
            return False
        request.fetch = self._cache.fetch(
            request.submit.namespace, request.tokens, request.reuse_limit, request.page_keys
        )
        if request.fetch is None:
            return False
        request.fetched = True
        self.order.remove(request)
        self._fetching[request.number] = request
        return True

    def violations(self) -> list[str]:
        """Broken rules of the drawing above, in words."""
        boxes = [*self._returning, *self._fetching]
        boxes += [number for _, waiters in self._parked.values() for number in waiters.items]
        boxes += self.order.numbers()
        everyone = sorted(request.number for request in self.values())
        found = []
        if sorted(boxes) != everyone:
            found.append(f"{len(everyone)} requests wait, in line or out of it are {len(boxes)}")
        if sorted(self.aging.numbers()) != everyone:
            found.append(f"{len(everyone)} requests wait, but others are aging")
        if self.n_tokens != sum(request.prompt_length for request in self.values()):
            found.append(f"the prompts that wait are not of {self.n_tokens} tokens")
        held = {id(request.fetch) for request in self.values() if request.fetch is not None}
        fetches = self._cache.tiers.fetches if self._cache.tiers else {}
        if held != set(fetches):
            found.append(f"{len(fetches)} fetches are of {len(held)} requests that wait")
        found += [f"nobody waits for {r.id}" for r, heap in self._parked.values() if not heap.items]
        return found

    def _release(self, blocker: Request, waiters: Waiters) -> None:
        gone = blocker.state is not State.PREFILL
        while (request := waiters.first()) is not None:
            if not gone and request.shared > blocker.computed:
                return
            self._unpark(request)
            self._returning[request.number] = request

    def _unpark(self, request: Request) -> None:
        assert request.blocker is not None
        _, waiters = self._parked[request.blocker.number]
        waiters.remove(request.number)
        if not waiters.items:
            del self._parked[request.blocker.number]
        request.blocker = None

    def _line_up(self, request: Request) -> None:
        if self._by_hit:
            self.refresh(request)
        self.order.add(request)

    def _forget(self, request: Request) -> None:
        del self.requests[request.id]
        self.n_tokens -= request.prompt_length
        self._by_age_of_hit.pop(request.number, None)
        if request.fetch is not None:
            self._cache.end_fetch(request.fetch)
            request.fetch = None
        if request.blocker is not None:
            self._unpark(request)
        elif not any(box.pop(request.number, None) for box in (self._returning, self._fetching)):
            self.order.remove(request)
