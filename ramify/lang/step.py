"""What executing a node does: text is appended, the backend is asked, a value comes out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ramify.lang import ir
from ramify.lang.backends.base import Backend
from ramify.lang.chunks import Chunk, joined
from ramify.lang.conversation import Conversation
from ramify.lang.future import Future, Value
from ramify.lang.options import GenerateOptions


@dataclass
class Transcript:
    """The text of a state so far, and the chat and scopes within it. One thread at a time."""

    conversation: Conversation
    text: str = ""
    scopes: list[tuple[str, int]] = field(default_factory=list)  # open ones: name, first character
    whole: Future = field(default_factory=lambda: Future("text"))

    def append(self, text: str) -> None:
        """Add text; readers of the whole text see it."""
        if text:
            self.text += text
            self.whole.push(Chunk(text))

    def copy(self) -> "Transcript":
        """The same text, to be continued on its own."""
        twin = Transcript(self.conversation.copy(), scopes=list(self.scopes))
        twin.append(self.text)
        return twin


@dataclass(frozen=True)
class Step:
    """Visitor that executes one node. Chunks of a stream go to `future` as they come."""

    backend: Backend
    defaults: GenerateOptions
    transcript: Transcript
    stream: bool
    future: Future | None

    def text(self, node: ir.Text) -> Value:
        """Append the constant."""
        self.transcript.append(node.value)
        return Value()

    def gen(self, node: ir.Gen) -> Value:
        """Ask for a completion and append it; of several, the first."""
        stops = self.backend.chat_template.stop_str
        options = node.options.over(self.defaults).with_stops(stops)
        prompt = self.transcript.text
        if self.stream and (options.n or 1) == 1:
            whole = joined(self._follow(self.backend.stream(prompt, options)))
            return Value(whole.text, whole.meta)
        completions = self.backend.generate(prompt, options)
        self.transcript.append(completions[0].text)
        if len(completions) == 1:
            return Value(completions[0].text, completions[0].meta)
        return Value([one.text for one in completions], [one.meta for one in completions])

    def _follow(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.transcript.append(chunk.text)
            if self.future is not None:
                self.future.push(chunk)
            yield chunk

    def select(self, node: ir.Select) -> Value:
        """Score the choices and append the one that the method takes.

        Its meta information counts the prompt tokens of the scoring requests.
        """
        scores = self.backend.score(
            self.transcript.text,
            node.choices,
            unconditional=node.method.requires_unconditional_logprobs,
        )
        taken = node.method(
            choices=list(node.choices),
            normalized_prompt_logprobs=scores.normalized,
            input_token_logprobs=scores.input_token_logprobs,
            output_token_logprobs=scores.output_token_logprobs,
            unconditional_token_logprobs=scores.unconditional,
        )
        self.transcript.append(taken.decision)
        counts = {"prompt_tokens": scores.prompt_tokens, "cached_tokens": scores.cached_tokens}
        return Value(taken.decision, {**(taken.meta_info or {}), **counts})

    def role_begin(self, node: ir.RoleBegin) -> Value:
        """Append the markup before a message."""
        transcript = self.transcript
        transcript.append(transcript.conversation.begin(node.role, transcript.text))
        return Value()

    def role_end(self, node: ir.RoleEnd) -> Value:
        """Append the markup after a message."""
        transcript = self.transcript
        transcript.append(transcript.conversation.end(node.role, transcript.text))
        return Value()

    def scope_begin(self, node: ir.ScopeBegin) -> Value:
        """Note where the scope starts."""
        self.transcript.scopes.append((node.name, len(self.transcript.text)))
        return Value()

    def scope_end(self, node: ir.ScopeEnd) -> Value:
        """The text since the scope began. Raises ValueError when it is not the innermost one."""
        scopes = self.transcript.scopes
        if not scopes or scopes[-1][0] != node.name:
            raise ValueError(f"the scope {node.name!r} is not the innermost open one")
        return Value(self.transcript.text[scopes.pop()[1] :])

    def symbol(self, node: ir.Symbol) -> NoReturn:
        """Raise TypeError."""
        raise TypeError(f"{node.name!r} is only known inside the trace that it comes from")

    def fork(self, node: ir.Fork) -> NoReturn:
        """Raise TypeError."""
        raise TypeError("a state is forked by its method `fork`")

    def join(self, node: ir.Join) -> NoReturn:
        """Raise TypeError."""
        raise TypeError("branches are joined by their group's method `join`")
