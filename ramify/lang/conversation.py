"""The chat inside a text: which message is open, which are closed, and their markup. Pure."""

from dataclasses import dataclass, field

from ramify.lang.chat_template import ChatTemplate, Message


@dataclass
class Conversation:
    """The closed messages, and the role and start (in characters) of the open one."""

    template: ChatTemplate
    messages: list[Message] = field(default_factory=list)
    role: str | None = None
    start: int = 0

    def begin(self, role: str, text: str) -> str:
        """Open a message after `text`; the markup to append to it.

        A chat that does not begin with a system message gets the template's default one, if it has
        one. Raises ValueError inside another message.
        """
        if self.role is not None:
            raise ValueError(
                f"a {role} message begins inside a {self.role} message: close it first"
            )
        markup = ""
        if not self.messages and role != "system":
            markup = self._default_system()
        self.role = role
        markup += self.template.get_prefix_and_suffix(role, self.messages)[0]
        self.start = len(text) + len(markup)
        return markup

    def end(self, role: str, text: str) -> str:
        """Close the open message, the end of `text`; the markup to append.

        Raises ValueError when another role or none is open.
        """
        if self.role != role:
            raise ValueError(f"a {role} message ends, but the open one is of: {self.role}")
        suffix = self.template.get_prefix_and_suffix(role, self.messages)[1]
        self.messages.append({"role": role, "content": text[self.start :].lstrip()})
        self.role = None
        return suffix

    def copy(self) -> "Conversation":
        """The same conversation, to be continued on its own."""
        return Conversation(self.template, list(self.messages), self.role, self.start)

    def _default_system(self) -> str:
        prompt = self.template.default_system_prompt
        if prompt is None:
            return ""
        prefix, suffix = self.template.get_prefix_and_suffix("system", self.messages)
        self.messages.append({"role": "system", "content": prompt})
        return prefix + prompt + suffix
