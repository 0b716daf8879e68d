"""Chat templates: the same text as transformers, and no way for messages to do harm."""

import pytest

from ramify.srt.errors import InvalidRequest, ModelLoadError
from ramify.srt.tokenization.chat_template import ChatTemplate

PLAIN = """{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'system'] %}
        {{- raise_exception('no such role: ' + message.role) }}
    {%- endif %}
<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""
TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
TOOLS = """{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% for m in messages %}
    {% if loop.index > 2 %}{% break %}{% endif %}
{{ m | tojson }}
{% generation %}{{ m.content }}{% endgeneration %}
{% endfor %}{{ strftime_now('%Y') | length }}"""
PARTS = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
MESSAGES = [
    {"role": "system", "content": "Be <brief> & \"kind\" 'é'."},
    {"role": "user", "content": "Hello  "},
    {"role": "assistant", "content": " So, "},
]


def theirs(source, messages, **options):
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    given = {"bos_token": "<s>", "eos_token": "</s>", **options}
    return render_jinja_template([messages], chat_template=source, **given)[0][0]


@pytest.mark.parametrize("source", [PLAIN, TRIMMING, TOOLS])
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": [{"name": "f", "about": "<é>"}]},
    ],
)
def test_the_text_is_that_of_transformers(source, options):
    ours = ChatTemplate(source, "<s>", "</s>").render(MESSAGES, **options)
    assert ours == theirs(source, MESSAGES, **options)


@pytest.mark.parametrize("source", [PLAIN, TRIMMING])
def test_a_continued_message_stays_open(source):
    options = {"add_generation_prompt": False, "continue_final_message": True}
    ours = ChatTemplate(source, "<s>", "</s>").render(MESSAGES, **options)
    assert ours == theirs(source, MESSAGES, **options)
    assert ours.rstrip().endswith("So,")


def test_the_last_text_part_is_the_one_continued():
    messages = [{"role": "assistant", "content": [{"text": "a"}, {"text": "b"}]}]
    assert ChatTemplate(PARTS).render(messages, continue_final_message=True) == "<a><b"


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"role": "user", "content": [{"image": 1}]}]]
)
def test_nothing_to_continue_is_refused(messages):
    with pytest.raises(InvalidRequest, match="continue") as caught:
        ChatTemplate(TRIMMING).render(messages, continue_final_message=True)
    assert caught.value.param == "messages"


def test_the_templates_own_complaint_reaches_the_caller():
    with pytest.raises(InvalidRequest, match="no such role: tool") as caught:
        ChatTemplate(PLAIN).render([{"role": "tool", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("content", [None, 5, {"a": 1}, []])
def test_content_of_a_wrong_shape_is_refused_or_shown_but_no_crash(content):
    template = ChatTemplate("{{ messages[0]['content'] + '!' }}")
    with pytest.raises(InvalidRequest):
        template.render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "escape",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range(10**9) | list }}",
        "{{ strftime_now.__code__ }}",
    ],
)
def test_the_sandbox_holds(escape):
    try:
        text = ChatTemplate(escape).render([{"role": "user", "content": "x"}])
    except InvalidRequest:
        return
    assert text == ""  # a forbidden attribute is undefined, which prints as nothing


def test_a_long_text_is_cut_off_before_it_is_all_made(monkeypatch):
    monkeypatch.setattr("ramify.srt.tokenization.chat_template.MAX_RENDERED_CHARS", 1000)
    template = ChatTemplate("{% for m in messages %}{{ m.content * 10 }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="1000 characters"):
        template.render([{"role": "user", "content": "x" * 50}] * 10)


def test_messages_are_text_never_template():
    shown = ChatTemplate("{{ messages[0].content }}").render([{"content": "{{ 7 * 7 }}"}])
    assert shown == "{{ 7 * 7 }}"


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "raise_exception", "range"])
def test_variables_cannot_replace_what_templates_rely_on(name):
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("x").render(MESSAGES, **{name: "mine"})
    assert caught.value.param == "chat_template_kwargs"


def test_other_variables_reach_the_template():
    assert ChatTemplate("{{ enable_thinking }}").render(MESSAGES, enable_thinking=False) == "False"


def test_a_broken_template_is_a_broken_model():
    with pytest.raises(ModelLoadError, match="chat template"):
        ChatTemplate("{% for %}")
