"""Chat markup: taken out of the model's own Jinja template where it has a fixed form."""

import pytest

import ramify.lang as rl
from ramify.lang.backends.local import EngineBackend
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.chat_template import (
    TEMPLATES,
    ChatTemplateStyle,
    get_chat_template,
    get_chat_template_by_model_path,
)
from ramify.lang.jinja_template import choose_template, derive

CHATML = """\
{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_DEFAULT = """\
{% for m in messages %}
{% if loop.first and m['role'] != 'system' %}
{{ '<|im_start|>system\\nI help.<|im_end|>\\n' }}\
{% endif %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}\
{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim }}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

LLAMA2 = """\
{%- set ns = namespace(system='') %}
{%- for m in messages %}
{%- if m.role == 'system' %}
{%- set ns.system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}
{%- elif m.role == 'user' %}
{{- bos_token + '[INST] ' + ns.system + m.content + ' [/INST]' }}
{%- set ns.system = '' %}
{%- else %}
{{- ' ' + m.content + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""

MISTRAL_MERGED = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (sys + '\\n\\n' if loop.last and sys is defined else '') + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}
{{- ' ' + m.content + eos_token }}
{%- endif %}
{%- endfor %}"""

NO_SYSTEM = """\
{%- for m in messages %}
{%- if m.role == 'system' %}{{- raise_exception('no system messages') }}{% endif %}
{{- '<turn>' + m.role + '\\n' + m.content + '</turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>assistant\\n' }}{% endif %}"""

DATED = """\
{%- for m in messages %}
{%- if loop.first %}{{- '<s>' + strftime_now('%Y')[:0] + 'Date: today\\n' }}
{%- if m.role != 'system' %}{{- '</s>' }}{% endif %}{% endif %}
{%- if m.role == 'system' %}{{- m.content + '</s>' }}
{%- else %}{{- '<' + m.role + '>' + m.content + '</' + m.role + '>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<assistant>' }}{% endif %}"""


def roles(template):
    return dict(template.role_prefix_and_suffix)


@pytest.mark.parametrize("bos", ["", "<|im_start|>"])
def test_chatml_is_taken_apart_and_equals_the_named_one(bos):
    """Some ChatML models call the start of a message their BOS: it is not cut off for that."""
    template = derive(CHATML, bos, "<|im_end|>")
    assert roles(template) == roles(TEMPLATES["chatml"])
    assert template.stop_str == ("<|im_end|>",)
    assert template.default_system_prompt is None


def test_a_default_system_message_is_found():
    template = derive(CHATML_DEFAULT, "", "<|im_end|>")
    assert roles(template) == roles(TEMPLATES["chatml"])
    assert template.default_system_prompt == "I help."


def test_llama_3_leaves_bos_to_the_server():
    template = derive(LLAMA3, "<|begin_of_text|>", "<|eot_id|>")
    assert roles(template) == roles(TEMPLATES["llama-3-instruct"])
    assert template.stop_str == ("<|eot_id|>",)


def test_llama_2_puts_the_system_message_into_the_first_user_message():
    template = derive(LLAMA2, "<s>", "</s>")
    assert template.style is ChatTemplateStyle.LLAMA2
    named = TEMPLATES["llama-2-chat"]
    assert roles(template) == roles(named)
    assert template.stop_str == ("</s>",)
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": " A"},
        {"role": "user", "content": "V"},
    ]
    expected = "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"
    assert template.get_prompt(chat) == named.get_prompt(chat) == expected


def test_merged_or_refused_system_messages_leave_the_choice_to_the_path():
    for source in (MISTRAL_MERGED, NO_SYSTEM):
        own = derive(source, "<s>", "</s>")
        assert "system" not in own.role_prefix_and_suffix
        info = {"chat_template": source, "bos_token": "<s>", "eos_token": "</s>"}
        assert choose_template(info | {"model_path": "Mistral-7B-Instruct"}).name == "mistral"
        assert choose_template(info | {"model_path": "unknown"}) == own
    user, assistant = roles(derive(MISTRAL_MERGED, "<s>", "</s>")).values()
    assert user == ("[INST] ", "[/INST]")
    assert assistant == ("", "</s>"), "the space before an answer is the model's to write"


def test_an_opening_that_is_always_there_belongs_to_the_system_message():
    template = derive(DATED, "", "")
    assert roles(template)["system"] == ("<s>Date: today\n", "</s>")
    assert template.default_system_prompt == "", "it opens a chat, with no content"

    @rl.function
    def chat(s):
        s += rl.user("hi")

    state = chat.run(backend=ScriptedEngine(chat_template=DATED))
    assert state.text() == "<s>Date: today\n</s><user>hi</user>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.unknown() }}",
        "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}",
        "constant",
        "{% broken",
        "{{ 1 / 0 }}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_templates_without_a_fixed_form_fall_back(source):
    assert derive(source, "", "") is None
    assert choose_template({"chat_template": source, "model_path": "x"}).name == "default"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3-Base", "default"),
        ("lmsys/vicuna-7b-v1.5", "vicuna_v1.1"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("google/gemma-2-9b-it", "gemma-it"),
        ("ibm/granite-3.0-8b-instruct", "granite-3-instruct"),
        ("CohereForAI/c4ai-command-r-v01", "c4ai-command-r"),
        ("01-ai/Yi-1.5-9B-Chat", "yi-1.5"),
        ("some/thing", "default"),
    ],
)
def test_named_templates_are_found_by_path(path, name):
    assert get_chat_template_by_model_path(path).name == name


def test_a_program_may_name_its_template():
    engine = ScriptedEngine(chat_template=CHATML)
    assert EngineBackend(engine).chat_template.name == "model"
    assert EngineBackend(engine, "claude").chat_template.name == "claude"
    with pytest.raises(ValueError, match="there are: default, claude"):
        get_chat_template("nothing")


def test_a_prompt_of_whole_messages():
    messages = [{"role": "system", "content": None}, {"role": "user", "content": "Hi"}]
    assert get_chat_template("qwen").get_prompt(messages) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    assert get_chat_template("claude").get_prompt(messages) == "\n\nHuman: Hi"
    assert get_chat_template("default").get_prompt([{"role": "tool", "content": "x"}]) == "x"
