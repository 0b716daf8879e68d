"""Where a model's thinking ends and its answer begins: the markers by name, and a splitter. Pure.

    <think> I add the two. </think> The sum is 5.
    begin   |- reasoning -|   end   |- content --|

Nothing is lost but the markers, and white space in front of `begin`.
"""

from dataclasses import dataclass
from typing import AnyStr, NamedTuple

MAX_LEAD = 32  # characters of white space in front of `begin`; behind more of it there is none


@dataclass(frozen=True)
class Markers:
    """How a family of models marks its thinking.

    With `starts_inside` an output begins with thinking, whether it writes `begin` or not: usually
    the chat template has written it. Without, an output thinks if it begins with `begin`.
    """

    begin: str
    end: str
    starts_inside: bool = False


PARSERS = {
    "deepseek-r1": Markers("<think>", "</think>", starts_inside=True),
    "qwen3": Markers("<think>", "</think>"),
    "qwen3-thinking": Markers("<think>", "</think>", starts_inside=True),
    "glm45": Markers("<think>", "</think>"),
    "kimi": Markers("◁think▷", "◁/think▷"),
    "mistral": Markers("[THINK]", "[/THINK]"),
}
NAMES = tuple(PARSERS)


class Parts(NamedTuple):
    """Text of both kinds, the thinking first."""

    reasoning: str = ""
    content: str = ""

    def with_more(self, more: "Parts") -> "Parts":
        """These and what came after them."""
        return Parts(self.reasoning + more.reasoning, self.content + more.content)


class Splitter:
    """Splits one growing text, however it is cut into pieces.

    What may be a part of a marker is held until that is known: at most MAX_LEAD characters and the
    markers' own.
    """

    def __init__(self, markers: Markers, *, inside: bool) -> None:
        """`inside`: the text begins with thinking, whether `begin` stands there or not."""
        self._markers = markers
        self._inside = inside
        self._begun = False  # whether it is known how the text begins
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thinking; False while that is not known."""
        return self._inside

    def push(self, text: str) -> Parts:
        """The text that is new and certain, by kind."""
        self._held += text
        if not self._begun and not self._begin():
            return Parts()
        return self._split() if self._inside else Parts("", self._take(len(self._held)))

    def finish(self) -> Parts:
        """What is held: no marker will come of it."""
        held = self._take(len(self._held))
        return Parts(held, "") if self._inside else Parts("", held)

    def _begin(self) -> bool:
        """See how the text begins. False if that takes more of it."""
        begin, rest = self._markers.begin, self._held.lstrip()
        lead = len(self._held) - len(rest)
        if lead <= MAX_LEAD:
            if rest.startswith(begin):
                self._inside = True
                self._take(lead + len(begin))
            elif begin.startswith(rest):
                return False
        self._begun = True
        return True

    def _split(self) -> Parts:
        end = self._markers.end
        at = self._held.find(end)
        if at < 0:
            return Parts(self._take(len(self._held) - begun_at_end(self._held, end)))
        self._inside = False
        reasoning = self._take(at)
        self._take(len(end))
        return Parts(reasoning, self._take(len(self._held)))

    def _take(self, n: int) -> str:
        taken, self._held = self._held[:n], self._held[n:]
        return taken


def split(text: str, markers: Markers, *, inside: bool) -> Parts:
    """A whole text by kind."""
    splitter = Splitter(markers, inside=inside)
    return splitter.push(text).with_more(splitter.finish())


def begun_at_end(text: AnyStr, marker: AnyStr) -> int:
    """How many characters, or bytes, at the end of a text may be the first ones of a marker."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
