"""Nobody starves: who was overtaken `bound` times by later arrivals goes first, the oldest of them.

A request that never ran needs no count of its own:

    number       1   2   3   4   5   6   7   8
    waits            w       w       w       w        the oldest is 2
    admitted             a       a       a            passed = [3, 5, 7]: those after the oldest

    overtaken(w) = how many of `passed` are after w:  3 for 2,  2 for 4,  1 for 6,  0 for 8

A later arrival than w was admitted while w waited, for w always waited. So the oldest is overtaken
most, only it is looked at, and `passed` never outgrows the bound. An admission costs no visit to
those who wait, except to the few that were retracted: they ran for a while, so they count alone.
"""

from collections import OrderedDict

from ramify.srt.scheduling.request import Request


class Aging:
    """Who was overtaken how often. Every waiting request is in here."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._fresh: OrderedDict[int, Request] = OrderedDict()  # never ran, in order of arrival
        self._resuming: dict[int, Request] = {}  # ran and were retracted
        self._passed: list[int] = []

    def add(self, request: Request) -> None:
        group = self._resuming if request.ran else self._fresh
        group[request.number] = request

    def numbers(self) -> list[int]:
        """Those who wait, in no particular order."""
        return [*self._fresh, *self._resuming]

    def remove(self, request: Request) -> None:
        """It waits no longer, for whatever reason."""
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
