"""Ending a text at stop strings that may arrive cut into any pieces.

text so far   | given out already | held: may become a stop |
                                   ^ the earliest place where a stop could have begun
"""

from collections.abc import Iterable


class StopStrings:
    """Watches one growing text for stop strings.

    The stop that is complete first ends the text, whatever the pieces it comes in; of those
    complete at the same character the longest, so that the most is trimmed. `keep` leaves the
    stop in the text.
    """

    def __init__(self, stops: Iterable[str], keep: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._keep = keep
        self._held = ""
        self.matched: str | None = None

    def push(self, delta: str) -> tuple[str, str | None]:
        """(text to give out now, the stop that has ended the text). Nothing comes after a stop."""
        if self.matched is not None:
            return "", self.matched
        text = self._held + delta
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._keep else start], self.matched
        safe = min((_possible_start(text, stop) for stop in self._stops), default=len(text))
        self._held = text[safe:]
        return text[:safe], None

    def finish(self) -> str:
        """What is still held: no stop will come of it."""
        held, self._held = self._held, ""
        return held


def _possible_start(text: str, stop: str) -> int:
    """The first index from which `text` is a beginning of `stop`, or its length."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
