"""What can be known from the nodes of a trace. Pure."""

from collections.abc import Iterable

from ramify.lang.chat_template import ChatTemplate
from ramify.lang.conversation import Conversation
from ramify.lang.ir import Node, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Text


def constant_prefix(nodes: Iterable[Node], template: ChatTemplate) -> str:
    """The text before the first node whose text depends on arguments or on the model."""
    conversation, text = Conversation(template), ""
    for node in nodes:
        match node:
            case Text(value):
                text += value
            case RoleBegin(role):
                text += conversation.begin(role, text)
            case RoleEnd(role):
                text += conversation.end(role, text)
            case ScopeBegin() | ScopeEnd():
                pass
            case _:
                break
    return text
