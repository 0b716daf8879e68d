"""Requests whose grammar is being compiled: they reach the scheduler when it is ready.

submit --> hold --> [ being compiled ] --> settled: the request with its grammar, or refused
                          `--> take_back: aborted, or past its deadline
"""

import math

from ramify.srt.constrained.base import CompiledGrammar, GrammarError
from ramify.srt.constrained.manager import GrammarManager, Ticket
from ramify.srt.constrained.reasoning_gate import Gates
from ramify.srt.constraints import refusal
from ramify.srt.errors import InvalidRequest, QueueFull, RequestError, Unavailable
from ramify.srt.messages import Submit
from ramify.srt.reasoning import PARSERS

Held = tuple[Submit, float]  # with the time of its arrival
Settled = tuple[Submit, float, CompiledGrammar | RequestError]


class Compiling:
    """The requests that wait for `manager`, None for a model that has no tokenizer.

    A grammar is compiled and remembered as it is; the gate of `reasoning_parser` is put in front
    for the requests whose outputs begin with thinking.
    """

    def __init__(self, manager: GrammarManager | None, reasoning_parser: str | None = None) -> None:
        self._manager = manager
        self._gates = None if reasoning_parser is None else Gates(PARSERS[reasoning_parser].end)
        self._held: dict[str, tuple[Submit, float, Ticket]] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, message: Submit, now: float) -> Settled | None:
        """Ask for the request's grammar. None: it is held until `settled` gives it back."""
        assert message.grammar is not None, "only a request with a grammar is held"
        if self._manager is None:
            text = "this model has no tokenizer, so its output cannot be constrained"
            return message, now, InvalidRequest(text, param=message.grammar.param)
        try:
            ticket = self._manager.request(message.grammar)
        except QueueFull as error:
            return message, now, error
        if ticket.state == "pending":
            self._held[message.request_id] = message, now, ticket
            return None
        return self._settled(message, now, ticket)

    def settled(self) -> list[Settled]:
        """Those whose grammar is ready or refused."""
        if self._manager is None or not self._held:
            return []
        self._manager.poll()
        done = [held for held in self._held.values() if held[2].state != "pending"]
        for message, _, _ in done:
            del self._held[message.request_id]
        return [self._settled(*held) for held in done]

    def take_back(self, request_id: str) -> Held | None:
        """Give a request up; its grammar is compiled nevertheless."""
        held = self._held.pop(request_id, None)
        return None if held is None else held[:2]

    def late(self, now: float) -> list[Held]:
        """Give up those past their deadline."""
        late = [
            (message, arrived)
            for message, arrived, _ in self._held.values()
            if arrived + (message.timeout_s or math.inf) <= now
        ]
        for message, _ in late:
            del self._held[message.request_id]
        return late

    def wait(self, timeout_s: float) -> None:
        """Return when something is compiled, or after `timeout_s`."""
        if self._manager is not None:
            self._manager.wait(timeout_s)

    def close(self) -> None:
        """End what compiles."""
        if self._manager is not None:
            self._manager.close()

    def _settled(self, message: Submit, arrived: float, ticket: Ticket) -> Settled:
        assert message.grammar is not None, "only a request with a grammar is held"
        if ticket.grammar is not None:
            return message, arrived, self._gated(ticket.grammar, message.reasoning)
        error = ticket.error
        if isinstance(error, GrammarError):
            return message, arrived, refusal(error, message.grammar.param)
        assert isinstance(error, Unavailable), "a settled ticket has a grammar or an error"
        return message, arrived, error

    def _gated(self, grammar: CompiledGrammar, reasoning: bool) -> CompiledGrammar:
        if not reasoning:
            return grammar
        assert self._gates is not None, "only a model with a reasoning parser is asked to think"
        return self._gates.before(grammar)
