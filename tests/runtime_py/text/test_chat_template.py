"""Chat templates say what transformers' `apply_chat_template` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
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
        "{% for _ in range(999999999) %}x{% endfor %}",
        "{{ 1 // 0 }}",
    ],
)
def test_the_sandbox(checkpoint, tmp_path, source):
    template = load_template(with_template(checkpoint, tmp_path, source, "file"))
    with pytest.raises(UsageError, match="refuses the messages"):
        template.render(TURNS)


def test_what_is_no_template(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"has no chat template .*use --prompt without --chat"):
        load_template(checkpoint)
    with_template(checkpoint, tmp_path, "{% for %}", "file")
    with pytest.raises(ModelError, match="the chat template is not Jinja: "):
        load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="not UTF-8"):
        load_template(tmp_path)
