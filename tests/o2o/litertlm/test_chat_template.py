"""Chat templates as LiteRT-LM needs them: without special tokens of its own, and the start token once."""

from __future__ import annotations

import jinja2
import pytest

from o2o.litertlm.chat_template import PLAIN, adapt

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rendered(template: str) -> str:
    """As LiteRT-LM renders: a template sees the messages only."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(messages=MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
        "{% for m in messages %}{% set c = bos_token + m.content if loop.first else m.content %}{{ c }}"
        "{{ eos_token }}{% endfor %}",
        "<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}",
        "{{ '<s>' }}{% for m in messages %}{% generation %}{{ m.content }}</s>{%- endgeneration %}"
        "{% endfor %}",
    ],
)
def test_the_start_token_is_not_written_twice(template: str) -> None:
    assert rendered(adapt(template, TOKENS, starts=True)) == "Hi</s>Hello</s>"


def test_without_a_start_token_the_template_writes_its_own() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert rendered(adapt(template, TOKENS, starts=False)) == "<s>HiHello"


def test_a_start_token_inside_the_text_stays() -> None:
    template = "{% for m in messages %}[<s>{{ m.content }}]{% endfor %}"
    assert adapt(template, TOKENS, starts=True) == template


def test_a_template_without_special_tokens_stays() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert adapt(template, {}, starts=False) == template


def test_the_plain_template() -> None:
    assert rendered(PLAIN) == "HiHello"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert jinja2.Environment().from_string(PLAIN).render(messages=parts) == "ab"
