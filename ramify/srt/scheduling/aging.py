"""Nobody starves: who was overtaken `bound` times by later arrivals goes first, the oldest of them.

A request that never ran needs no count of its own:

    number       1   2   3   4   5   6   7   8
    waits            w       w       w       w        the oldest is 2
    admitted             a       a       a            passed = [3, 5, 7]: those after the oldest

    overtaken(w) = how many of `passed` are after w:  3 for 2,  2 for 4,  1 for 6,  0 for 8

A later arrival than w was admitted while w waited, for w always waited. So the oldest is overtaken
most, only it is looked at, and `passed` never outgrows the bound. An admission costs no visit to
those who wait, except to the few that were retracted: they ran for a while, so they count alone.

Only requests of the same account count: an account that floods the queue cannot go before the
others by the age of what it sent. How long accounts wait for each other is bounded by `shares`.
"""

from collections import OrderedDict
from typing import NamedTuple

from ramify.srt.scheduling.request import Request
from ramify.srt.scheduling.shares import Shares


class Ages:
    """Who of one account was overtaken how often."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._fresh: OrderedDict[int, Request] = OrderedDict()  # never ran, in order of arrival
        self._resuming: dict[int, Request] = {}  # ran and were retracted
        self._passed: list[int] = []
        self.n_tokens = 0  # of their prompts

    def __len__(self) -> int:
        return len(self._fresh) + len(self._resuming)

    def add(self, request: Request) -> None:
        self.n_tokens += request.prompt_length
        group = self._resuming if request.ran else self._fresh
        group[request.number] = request

    def numbers(self) -> list[int]:
        """Those who wait, in no particular order."""
        return [*self._fresh, *self._resuming]

    def remove(self, request: Request) -> None:
        """It waits no longer, for whatever reason."""
        self.n_tokens -= request.prompt_length
        if request.ran:
            del self._resuming[request.number]
            return
        was_oldest = request.number == next(iter(self._fresh))
        del self._fresh[request.number]
        if was_oldest:
            oldest = next(iter(self._fresh), None)
            self._passed = [n for n in self._passed if oldest is not None and n > oldest]

    def admit(self, request: Request) -> None:
        """It goes next: fix its count, and remove it having overtaken whoever came before it."""
        request.overtaken = self.overtaken(request)
        self.remove(request)
        for other in self._resuming.values():
            other.overtaken += other.number < request.number
        if self._fresh and request.number > next(iter(self._fresh)):
            self._passed.append(request.number)

    def overtaken(self, request: Request) -> int:
        """How many later arrivals were admitted while this request waited."""
        if request.ran:
            return request.overtaken
        return sum(number > request.number for number in self._passed)

    def overdue(self) -> Request | None:
        """Who must go next, if anybody must."""
        late = [r for r in self._resuming.values() if r.overtaken >= self._bound]
        if len(self._passed) >= self._bound:
            late.append(next(iter(self._fresh.values())))
        return min(late, key=lambda r: r.number, default=None)


class Share(NamedTuple):
    """What of the queue is one account's. `accounts`: how many wait, this one included."""

    n_requests: int
    n_tokens: int
    accounts: int


class Aging:
    """The ages of all accounts. Every waiting request is in here, so it tells who waits."""

    def __init__(self, bound: int, shares: Shares) -> None:
        self._bound = bound
        self._shares = shares
        self._ages: dict[str, Ages] = {}

    def numbers(self) -> list[int]:
        """Those who wait, in no particular order."""
        return [number for ages in self._ages.values() for number in ages.numbers()]

    def add(self, request: Request) -> None:
        """It waits."""
        account = request.submit.account
        if account not in self._ages:
            self._ages[account] = Ages(self._bound)
            self._shares.begin(account)
        self._ages[account].add(request)
        if request.ran:  # else it is the newest, and nobody became older
            self._note(account)

    def remove(self, request: Request) -> None:
        """It waits no longer, for whatever reason."""
        self._ages[request.submit.account].remove(request)
        self._note(request.submit.account)

    def admit(self, request: Request) -> None:
        """It goes next, and has overtaken those of its account who came before it."""
        self._ages[request.submit.account].admit(request)
        self._note(request.submit.account)

    def overtaken(self, request: Request) -> int:
        """How many later arrivals of its account were admitted while this request waited."""
        return self._ages[request.submit.account].overtaken(request)

    def share(self, account: str) -> Share:
        """What an account has in the queue."""
        ages = self._ages.get(account)
        if ages is None:
            return Share(0, 0, len(self._ages) + 1)
        return Share(len(ages), ages.n_tokens, len(self._ages))

    def overdue(self) -> Request | None:
        """Who must go next, if the account whose turn it is has somebody who must."""
        ages = self._ages.get(account) if (account := self._shares.turn()) is not None else None
        return None if ages is None else ages.overdue()

    def _note(self, account: str) -> None:
        ages = self._ages[account]
        self._shares.set_late(account, ages.overdue() is not None)
        if not ages:
            del self._ages[account]
            self._shares.end(account)
