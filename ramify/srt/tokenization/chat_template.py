"""Rendering a conversation by the model's own chat template, a Jinja program.

The template comes with the model, never from a client. It runs in Jinja's sandbox all the same,
with the helpers that templates of the hub expect.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ramify.srt.errors import InvalidRequest, ModelLoadError

MAX_RENDERED_CHARS = 64 * 1024 * 1024
END_MARK = "\x02end of the message to continue\x03"  # text that no message may hold
OWN_NAMES = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})
# All that a template can raise on content of an unexpected shape.
TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """A compiled chat template with the model's begin and end tokens."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        """Raises ModelLoadError when the template does not compile."""
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelLoadError(f"the chat template is broken: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation. The template sees `variables` (tools, documents, ...) too.

        With `continue_final_message` the text ends where the last message does, so that the model
        goes on with it. Raises InvalidRequest with what the template says against the messages.
        """
        taken = OWN_NAMES & variables.keys() or variables.keys() & self._template.globals.keys()
        if taken:
            raise InvalidRequest(
                f"chat template variables must not be called {', '.join(sorted(taken))}",
                param="chat_template_kwargs",
            )
        if continue_final_message:
            return self._render_to_end_of_message(messages, variables)
        return self._render(messages, add_generation_prompt, variables)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], prompting: bool, variables: Mapping[str, Any]
    ) -> str:
        given = {"tools": None, "documents": None, **variables, **self._tokens}
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=list(messages), add_generation_prompt=prompting, **given
            ):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_RENDERED_CHARS:
                    raise _refused(f"over {MAX_RENDERED_CHARS} characters of text")
        except TEMPLATE_FAULTS as error:
            raise _refused(str(error) or type(error).__name__) from error
        return "".join(pieces)

    def _render_to_end_of_message(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> str:
        """Mark the end of the last message, render, and cut at the mark.

        The space behind the mark tells a template that trims messages from one that does not.
        """
        marked = [*messages[:-1], _marked(messages[-1])] if messages else []
        text, found, rest = self._render(marked, False, variables).rpartition(END_MARK)
        if not found:
            raise _refused("there is no last message with text to continue")
        return text if rest.startswith(" ") else text.rstrip()


def _marked(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with the mark behind its text: a string, or the last text part of a list."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + END_MARK + " "}
    if isinstance(content, list):
        parts = list(content)
        for i in reversed(range(len(parts))):
            if isinstance(parts[i], dict) and isinstance(parts[i].get("text"), str):
                parts[i] = {**parts[i], "text": parts[i]["text"] + END_MARK + " "}
                return {**message, "content": parts}
    raise _refused("the last message has no text to continue")


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the chat template does not take these messages: {why}", param="messages"
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training; here its body is all."""

    tags = {"generation"}  # noqa: RUF012  the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on: without Jinja's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005  templates mean the local date
