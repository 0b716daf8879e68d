"""In which order waiting requests are admitted: longest cached prefix first, nobody starved.

A request that was overtaken `bound` times goes before everybody who was not, oldest first. So no
request is ever overtaken more than `bound` times by later arrivals.
"""

from collections.abc import Iterable

from ramify.srt.scheduling.request import Request


def in_order(waiting: Iterable[Request], bound: int) -> list[Request]:
    """The waiting requests, the one to admit first at the front. Ties go to the older."""
    return sorted(waiting, key=lambda request: _key(request, bound))


def _key(request: Request, bound: int) -> tuple[bool, int, int]:
    overdue = request.overtaken >= bound
    return (not overdue, 0 if overdue else -request.hit, request.number)


def count_overtaken(waiting: Iterable[Request], admitted: Request) -> None:
    """Note that `admitted` went before everyone who is still waiting and came earlier."""
    for request in waiting:
        if request.number < admitted.number:
            request.overtaken += 1
