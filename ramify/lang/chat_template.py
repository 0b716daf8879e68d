"""Chat markup as a value: what goes before and after a message of each role. Pure.

The model's own template is the first choice (`jinja_template`). The named ones here are for
programs that ask for one, and for models without a template that can be taken apart.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

Message = dict[str, str]


class ChatTemplateStyle(Enum):
    """PLAIN: messages stand alone. LLAMA2: the first user message holds the system message."""

    PLAIN = "plain"
    LLAMA2 = "llama2"


@dataclass(frozen=True)
class ChatTemplate:
    """Prefix and suffix per role; `default_system_prompt` None means that there is none."""

    name: str
    default_system_prompt: str | None
    role_prefix_and_suffix: Mapping[str, tuple[str, str]]
    stop_str: tuple[str, ...] = ()
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN

    def get_prefix_and_suffix(self, role: str, hist_messages: Sequence[Message]) -> tuple[str, str]:
        """Markup of the next message, given those before it. Unknown roles have none."""
        prefix, suffix = self.role_prefix_and_suffix.get(role, ("", ""))
        if self.style is ChatTemplateStyle.LLAMA2:
            if role == "system" and not hist_messages:
                prefix = self.role_prefix_and_suffix["user"][0] + prefix
            elif role == "user" and [m["role"] for m in hist_messages] == ["system"]:
                prefix = ""
        return prefix, suffix

    def get_prompt(self, messages: Sequence[Mapping[str, str | None]]) -> str:
        """The text of whole messages. Content None stands for the default system prompt."""
        text, history = "", list[Message]()
        for message in messages:
            role, content = message["role"] or "", message["content"]
            if content is None and role == "system":
                content = self.default_system_prompt
            if content is None:
                continue
            prefix, suffix = self.get_prefix_and_suffix(role, history)
            text += prefix + content + suffix
            history.append({"role": role, "content": content})
        return text


def _template(
    name: str,
    system: tuple[str, str],
    user: tuple[str, str],
    assistant: tuple[str, str],
    *,
    default: str | None = None,
    stop: tuple[str, ...] = (),
    style: ChatTemplateStyle = ChatTemplateStyle.PLAIN,
) -> ChatTemplate:
    roles = {"system": system, "user": user, "assistant": assistant}
    return ChatTemplate(name, default, roles, stop, style)


def _header(start: str, role: str, end: str, close: str) -> tuple[str, str]:
    return start + role + end, close


def _same(
    name: str,
    start: str,
    end: str,
    close: str,
    roles: tuple[str, str, str] = ("system", "user", "assistant"),
    *,
    default: str | None = None,
    stop: tuple[str, ...] = (),
) -> ChatTemplate:
    """A template whose roles differ by one word."""
    parts = [_header(start, role, end, close) for role in roles]
    return _template(name, parts[0], parts[1], parts[2], default=default, stop=stop)


_IM = ("<|im_start|>", "\n", "<|im_end|>\n")
_HELPFUL = "You are a helpful assistant."
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_END = "<｜end▁of▁sentence｜>"
_TOKEN = ("SYSTEM_TOKEN|>", "USER_TOKEN|>", "CHATBOT_TOKEN|>")
_MODEL = ("<start_of_turn>model\n", "<end_of_turn>\n")
_TURN_USER = ("<start_of_turn>user\n", "<end_of_turn>\n")
_YI_USER = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")

_ALL = (
    _same("default", "", ":", "\n", ("SYSTEM", "USER", "ASSISTANT")),
    _template("claude", ("", ""), ("\n\nHuman: ", ""), ("\n\nAssistant:", "")),
    _same("chatml", *_IM, stop=("<|im_end|>",)),
    _same("qwen", *_IM, default=_HELPFUL, stop=("<|im_end|>",)),
    _template("vicuna_v1.1", ("", " "), ("USER:", " "), ("ASSISTANT:", "</s>"), default=_VICUNA),
    _template(
        "llama-2-chat",
        ("<<SYS>>\n", "\n<</SYS>>\n\n"),
        ("[INST] ", " [/INST]"),
        ("", " </s><s>"),
        style=ChatTemplateStyle.LLAMA2,
    ),
    _template(
        "mistral",
        ("[SYSTEM_PROMPT] ", " [/SYSTEM_PROMPT]"),
        ("[INST] ", " [/INST]"),
        ("", " </s><s>"),
        stop=("</s>",),
    ),
    _same(
        "llama-3-instruct",
        "<|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|>",
        stop=("<|eot_id|>",),
    ),
    _template("deepseek-v3", ("", ""), ("<｜User｜>", ""), ("<｜Assistant｜>", _END), stop=(_END,)),
    _template("gemma-it", ("", ""), _TURN_USER, _MODEL),
    _same(
        "granite-3-instruct",
        "<|start_of_role|>",
        "<|end_of_role|>",
        "<|end_of_text|>",
        stop=("<|end_of_text|>",),
    ),
    _same("c4ai-command-r", "<|START_OF_TURN_TOKEN|><|", "", "<|END_OF_TURN_TOKEN|>", _TOKEN),
    _template("yi-1.5", ("", ""), _YI_USER, ("", "<|im_end|>\n"), stop=("<|im_end|>",)),
)
TEMPLATES: Mapping[str, ChatTemplate] = {template.name: template for template in _ALL}

# A regular expression on the model's path, in lower case -> name. The first match wins.
_PATHS = (
    (r"deepseek-(v3|r1)(?!.*base)", "deepseek-v3"),
    (r"orion", "claude"),
    (r"vicuna|llava-v1\.5", "vicuna_v1.1"),
    (r"llama-2.*chat|codellama.*instruct", "llama-2-chat"),
    (r"pixtral|(mistral|mixtral).*instruct", "mistral"),
    (r"llama-3.*instruct", "llama-3-instruct"),
    (r"tinyllama|smollm", "chatml"),
    (r"qwen.*(chat|instruct)", "qwen"),
    (r"yi-1\.5.*chat", "yi-1.5"),
    (r"gemma.*it|gemma-3", "gemma-it"),
    (r"c4ai-command-r", "c4ai-command-r"),
    (r"granite.*instruct", "granite-3-instruct"),
)


def get_chat_template(name: str) -> ChatTemplate:
    """The named template. Raises ValueError with the names there are."""
    if name not in TEMPLATES:
        raise ValueError(f"no chat template {name!r}; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def match_model_path(path: str) -> ChatTemplate | None:
    """The named template for a model's path, or None."""
    for pattern, name in _PATHS:
        if re.search(pattern, path.lower()):
            return TEMPLATES[name]
    return None


def get_chat_template_by_model_path(path: str) -> ChatTemplate:
    """The named template for a model's path, `default` if none matches."""
    return match_model_path(path) or TEMPLATES["default"]
