"""Chat templates say what transformers' `apply_chat_template` says."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from o2o.errors import ModelError, UsageError
from runtime_py.text.chat_template import ChatTemplate, Message
from runtime_py.text.tokenizer import load_tokenizer
from tests.runtime_py.tokenizers_on_disk import LLAMA, write_config, write_llama_json, write_sentencepiece

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
STRICT = """{{ bos_token }}{% if messages[0].role == 'system' -%}
    {{ raise_exception('No system message.') }}
{%- endif %}
{%- for message in messages -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate.') }}
    {%- endif -%}
    {{ '[' + message.role + ']' + message.content | trim + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}[assistant]{% endif -%}"""
REST = """{% set ns = namespace(count=0) %}{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
{% generation %}{{ message | tojson }}{% endgeneration %}
    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{ ns.count }} {{ [1, 'ä<b>'] | tojson }} {{ dict(a=1) | tojson(indent=2) }} {{ unknown }}"""
TEMPLATES = {"zephyr": ZEPHYR, "strict": STRICT, "the rest": REST}

TURNS: list[Message] = [
    {"role": "user", "content": " Who are <you>?  "},
    {"role": "assistant", "content": "A model.\n\n"},
    {"role": "user", "content": "Größe 😀 {{ 1 + 1 }}"},
]
SYSTEM: Message = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = write_config(write_sentencepiece(tmp_path_factory.mktemp("pieces")), **LLAMA)
    if request.param == "tokenizer.model":
        return pieces
    return write_llama_json(tmp_path_factory.mktemp("json"), pieces)


def load_template(folder: Path, **variables: Any) -> ChatTemplate:
    return ChatTemplate(folder, load_tokenizer(folder).special_tokens, **variables)


def with_template(checkpoint: Path, folder: Path, source: str, where: str) -> Path:
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if where == "file":
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        return folder
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    config["chat_template"] = source if where == "config" else named
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("where", ["file", "config", "named"])
def test_text_and_ids_are_those_of_transformers(checkpoint, tmp_path, source, where):
    folder = with_template(checkpoint, tmp_path, source, where)
    template, tokenizer = load_template(folder), load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for messages in (TURNS[:1], TURNS, [SYSTEM, *TURNS]):
        if source is STRICT and messages[0] is SYSTEM:
            continue
        wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text = template.render(messages)
        assert text == wanted
        ids = theirs(wanted, add_special_tokens=False).input_ids
        assert tokenizer.encode(text, special=False) == ids


def test_what_it_refuses_is_told_in_its_words(checkpoint, tmp_path):
    template = load_template(with_template(checkpoint, tmp_path, STRICT, "file"))
    with pytest.raises(UsageError, match=r"refuses the messages: No system message\."):
        template.render([SYSTEM, *TURNS])
    with pytest.raises(UsageError, match=r"refuses the messages: Roles must alternate\."):
        template.render(TURNS[1:])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",  # immutable
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ dict.__class__ }}{{ dict.mro() }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ namespace({'_x': 1}) }}",
        "{{ messages[9].content.x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for _ in range(999999999) %}x{% endfor %}",
        "{{ 1 // 0 }}",
    ],
)
def test_the_sandbox(checkpoint, tmp_path, source):
    template = load_template(with_template(checkpoint, tmp_path, source, "file"))
    with pytest.raises(UsageError, match="refuses the messages"):
        template.render(TURNS)


def test_what_is_no_template(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"has no chat template .*continue a prompt with `o2o run`"):
        load_template(checkpoint)
    with_template(checkpoint, tmp_path, "{% for %}", "file")
    with pytest.raises(ModelError, match="the chat template is not Jinja: "):
        load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="not UTF-8"):
        load_template(tmp_path)


# What a template sees beside the messages.

SEES = """{{ bos_token }}|{{ tools is none }}|{{ documents is none }}
{{- tools | tojson }}|{{ documents | tojson }}
{%- if enable_thinking is defined and enable_thinking is false %}|no thinking{% endif -%}
{%- for m in messages %}
[{{ m.role }}]{{ m.keys() | list | sort | tojson }}
{{- m.reasoning_content }}{{ m.thinking }}
{%- if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content or [] %}{{ part.type }}:{{ part.text | trim }}{% endfor %}{% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function.name }}
{{- call.function.arguments | tojson }}{% endfor %}
{%- generation %}{% set x = loop.index %}{{ x }}{% endgeneration %}{{ x }}
{%- endfor %}{{ dict(a=[1, 2]) | tojson(indent=1) }}{{ namespace(n=3).n }}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Größe <b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
DOCUMENT = {"title": "A & B", "text": "text"}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": "Köln"}}}

contents = st.text(max_size=8) | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=8)}), max_size=2
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "other"])},
        optional={
            "content": contents | st.none(),
            "name": st.text(max_size=4),
            "tool_call_id": st.text(max_size=4) | st.none(),
            "tool_calls": st.lists(st.just(CALL), max_size=2) | st.none(),
            "reasoning_content": st.text(max_size=4) | st.none(),
            "reasoning": st.text(max_size=4),
            "thinking": st.text(max_size=4),
        },
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=messages,
    tools=st.none() | st.lists(st.just(TOOL), max_size=2),
    documents=st.none() | st.lists(st.just(DOCUMENT), max_size=1),
    arguments=st.dictionaries(
        st.sampled_from(["enable_thinking", "bos_token", "other"]), st.booleans() | st.text(max_size=3)
    ),
)
def test_any_conversation(checkpoint, tmp_path, messages, tools, documents, arguments):
    if not (tmp_path / "chat_template.jinja").exists():
        with_template(checkpoint, tmp_path, SEES, "file")
    theirs = _loaded(tmp_path)
    wanted = theirs.apply_chat_template(
        messages, tools=tools, documents=documents, tokenize=False, add_generation_prompt=True, **arguments
    )
    template = load_template(tmp_path, tools=tools, documents=documents, template_args=arguments)
    assert template.render(messages) == wanted


@functools.cache
def _loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_the_callers_messages_stay_as_they_are(checkpoint, tmp_path):
    template = load_template(with_template(checkpoint, tmp_path, SEES, "file"))
    message: Message = {"role": "user", "content": None, "reasoning_content": "r"}
    template.render([message])
    assert message == {"role": "user", "content": None, "reasoning_content": "r"}


def several(checkpoint: Path, folder: Path, where: str, *names: str) -> Path:
    with_template(checkpoint, folder, "", "config")
    sources = {name: f"{name}: {{{{ messages[0].content }}}}" for name in names}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    if where == "list":
        config["chat_template"] = [{"name": name, "template": text} for name, text in sources.items()]
    else:
        (folder / "additional_chat_templates").mkdir()
        for name, text in sources.items():
            file = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
            (folder / file).write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("where", ["list", "files"])
@pytest.mark.parametrize("names", [("default", "tool_use", "rag"), ("default", "rag"), ("rag", "tool_use")])
@pytest.mark.parametrize("tools", [None, [], [TOOL]])
@pytest.mark.parametrize("name", [None, "rag"])
def test_the_template_is_selected_as_transformers_does(checkpoint, tmp_path, where, names, tools, name):
    folder = several(checkpoint, tmp_path, where, *names)
    theirs = AutoTokenizer.from_pretrained(folder)
    try:
        wanted = theirs.apply_chat_template(TURNS[:1], tools=tools, chat_template=name, tokenize=False)
    except ValueError:
        with pytest.raises(
            UsageError, match="no default chat template: select one with --template: rag, tool_use"
        ):
            load_template(folder, tools=tools, template=name)
        return
    assert load_template(folder, tools=tools, template=name).render(TURNS[:1]) == wanted


def test_a_name_that_no_template_has(checkpoint, tmp_path):
    folder = several(checkpoint, tmp_path, "list", "default", "rag")
    with pytest.raises(UsageError, match="no chat template 'rga': it has default, rag"):
        load_template(folder, template="rga")


def test_the_file_of_a_processor_is_read_last(checkpoint, tmp_path):
    folder = with_template(checkpoint, tmp_path, "", "config")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert load_template(folder).render(TURNS[:1]) == ""
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_template(folder).render(TURNS[:1]) == "processor"
    (folder / "chat_template.json").write_text('{"chat_template": 5}')
    with pytest.raises(ModelError, match=r"chat_template\.json: chat_template must be a string, not 5"):
        load_template(folder)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"tools": "weather"}, "tools must be a list of JSON objects"),
        ({"tools": [print]}, "tools must be a list of JSON objects"),
        ({"documents": {"title": "x"}}, "documents must be a list of JSON objects"),
        ({"tools": [{"name": print}]}, "a variable of the chat template is not JSON"),
        ({"template_args": {"x": object()}}, "a variable of the chat template is not JSON"),
        ({"template_args": 5}, "template_args must be an object with the names of variables"),
        ({"template_args": {5: 1}}, "template_args must be an object with the names of variables"),
        ({"template_args": {"messages": []}}, "template_args cannot set messages"),
    ],
)
def test_variables_that_are_not_json(checkpoint, tmp_path, variables, message):
    folder = with_template(checkpoint, tmp_path, SEES, "file")
    with pytest.raises(UsageError, match=message):
        load_template(folder, **variables)


@pytest.mark.parametrize("messages", ["hi", ["hi"], [{"role": "user", "content": object()}], 5])
def test_messages_that_are_not_json(checkpoint, tmp_path, messages):
    template = load_template(with_template(checkpoint, tmp_path, SEES, "file"))
    with pytest.raises(UsageError, match="JSON"):
        template.render(messages)
