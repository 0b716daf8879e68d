"""From a model's Jinja chat template to the markup of each role.

A program appends to a text and cannot render its chat anew for each message, so the template is
taken apart once. Probe conversations whose contents are marks are rendered, and cut at the marks:

    bos  [before S] S [S..U] U [U..A] A [A..V] V [after V]      system, user, assistant, user
    bos  [before U] U [after U]                                 user alone: a default system prompt?

The parts are accepted only if they put together again give every probe, to the character.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from ramify.lang.chat_template import (
    TEMPLATES,
    ChatTemplate,
    ChatTemplateStyle,
    Message,
    match_model_path,
)
from ramify.lang.conversation import Conversation
from ramify.lang.future import Value, capture

S, U, A, V = "MarkSystem", "MarkUser", "MarkAssistant", "MarkAgain"
BOS = "MarkBos"  # not the token itself: templates write that for other reasons, too
NAME = "model"


class NotDerivable(Exception):
    """The template has no fixed markup per role."""


def choose_template(info: Mapping[str, Any]) -> ChatTemplate:
    """The markup for the model that a backend's `model_info` describes.

    In this order: the model's own template; the named one for its path; the model's own without
    system messages of their own markup; `default`.
    """
    source, named = info.get("chat_template"), match_model_path(info.get("model_path") or "")
    own = None
    if source:
        own = derive(source, info.get("bos_token") or "", info.get("eos_token") or "")
    if own is not None and "system" in own.role_prefix_and_suffix:
        return own
    return named or own or TEMPLATES["default"]


@lru_cache(maxsize=64)
def derive(source: str, bos: str, eos: str) -> ChatTemplate | None:
    """The markup per role of a Jinja template, or None if it has no fixed one.

    Where system messages are refused or merged into others, the result has no role `system`. A BOS
    that the template puts before everything is left out: the server puts it before every text.
    """
    found = capture(lambda: Value(_derive(_Probe(source, eos), bos, eos)))
    return found.value if isinstance(found, Value) else None  # an error only means "not this way"


class _Probe:
    """Renders conversations with a template, in a sandbox."""

    def __init__(self, source: str, eos: str) -> None:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: (
            datetime.now().astimezone().strftime(form)
        )
        self._template = environment.from_string(source)
        self._eos = eos

    def render(self, messages: list[Message], *, generate: bool = False) -> str:
        """The text without a leading BOS; one further on is the mark."""
        text = self._template.render(
            messages=messages,
            add_generation_prompt=generate,
            bos_token=BOS,
            eos_token=self._eos,
        )
        return text.removeprefix(BOS)


def _refuse(message: str) -> NoReturn:
    raise NotDerivable(message)


def _derive(probe: _Probe, bos: str, eos: str) -> ChatTemplate:
    user, assistant, space = _user_and_assistant(probe)
    stop = eos if eos and eos in assistant[1] else assistant[1].strip()
    roles = {"user": user, "assistant": assistant}
    bare = ChatTemplate(NAME, None, roles, (stop,) if stop else ())
    try:
        system, style = _system(probe, user)
        full = replace(bare, role_prefix_and_suffix={"system": system} | roles, style=style)
        found = _checked(full, probe, (U, U + A + V, S + U, S + U + A + V), space)
    except NotDerivable:
        found = _checked(bare, probe, (U, U + A + V), space)
    return replace(found, role_prefix_and_suffix=_with_bos(found.role_prefix_and_suffix, bos))


def _with_bos(roles: Mapping[str, tuple[str, str]], bos: str) -> dict[str, tuple[str, str]]:
    """The markup with the token in the place of its mark."""
    return {
        role: (prefix.replace(BOS, bos), suffix.replace(BOS, bos))
        for role, (prefix, suffix) in roles.items()
    }


def _messages(marks: str) -> list[Message]:
    """The probe conversation of some concatenated marks."""
    roles = {S: "system", U: "user", A: "assistant", V: "user"}
    return [{"role": roles[mark], "content": mark} for mark in (S, U, A, V) if mark in marks]


def _before(text: str, mark: str) -> str:
    if text.count(mark) != 1:
        raise NotDerivable(f"the content is not in the text once: {text!r}")
    return text[: text.index(mark)]


def _between(text: str, first: str, second: str) -> str:
    return _without_prefix(_before(text, second), _before(text, first) + first)


def _after(text: str, mark: str) -> str:
    return text[len(_before(text, mark)) + len(mark) :]


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise NotDerivable(f"{text!r} does not start with {prefix!r}")
    return text[len(prefix) :]


def _without_suffix(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise NotDerivable(f"{text!r} does not end with {suffix!r}")
    return text[: len(text) - len(suffix)]


def _user_and_assistant(probe: _Probe) -> tuple[tuple[str, str], tuple[str, str], str]:
    """Their markup from turns in the middle of a chat, and the space before an answer.

    Some templates put a space before an answer, but not at the end of the generation prompt: the
    model writes it. Some begin every user message with BOS, which here ends the message before it.
    """
    chat = probe.render(_messages(U + A + V))
    user_suffix = _after(chat, V)
    prompt = probe.render(_messages(U + A + V), generate=True)
    assistant_prefix = _without_prefix(_after(prompt, V), user_suffix)
    space = _without_prefix(_between(chat, U, A), user_suffix + assistant_prefix)
    if space.strip():
        raise NotDerivable("the generation prompt is not how an assistant message begins")
    assistant_suffix = _after(probe.render(_messages(U + A)), A)
    user_prefix = _without_prefix(_between(chat, A, V), assistant_suffix)
    if user_prefix.startswith(BOS):
        user_prefix = user_prefix.removeprefix(BOS)
        assistant_suffix += BOS
    return (user_prefix, user_suffix), (assistant_prefix, assistant_suffix), space


def _system(probe: _Probe, user: tuple[str, str]) -> tuple[tuple[str, str], ChatTemplateStyle]:
    """Its markup; LLAMA2 where it stands inside the first user message."""
    chat = probe.render(_messages(S + U))
    before, between = _before(chat, S), _between(chat, S, U)
    if between.endswith(user[0]):
        return (before, _without_suffix(between, user[0])), ChatTemplateStyle.PLAIN
    return (_without_prefix(before, user[0]), between), ChatTemplateStyle.LLAMA2


def _default_system(opening: str, bare: ChatTemplate) -> str | None:
    """The prompt of the system message that opens a chat without one; None if there is none."""
    conversation = Conversation(bare)
    if opening == conversation.begin("user", ""):
        return None
    prefix, suffix = bare.get_prefix_and_suffix("system", [])
    rest = _without_prefix(opening, prefix)
    after = suffix + bare.get_prefix_and_suffix("user", [{"role": "system", "content": ""}])[0]
    return _without_suffix(rest, after)


def _checked(
    bare: ChatTemplate, probe: _Probe, probes: tuple[str, ...], space: str
) -> ChatTemplate:
    """`bare` with its default system prompt.

    Raises NotDerivable unless it writes every probe as the model's own template does.
    """
    default = _default_system(_before(probe.render(_messages(U)), U), bare)
    template = replace(bare, default_system_prompt=default)
    for marks in probes:
        conversation, text = Conversation(template), ""
        for message in _messages(marks):
            text += conversation.begin(message["role"], text)
            text += (space if message["role"] == "assistant" else "") + message["content"]
            text += conversation.end(message["role"], text)
        if text != probe.render(_messages(marks)):
            raise NotDerivable(f"the parts give {text!r}")
    return template
