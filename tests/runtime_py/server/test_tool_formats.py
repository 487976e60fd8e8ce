"""Tool formats: calls of the common models, in any pieces; text that is no call stays text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.server.output_parser import Delta, OutputParser
from runtime_py.server.schemas import Tool
from runtime_py.server.tool_formats import (
    FORMATS,
    HermesParser,
    LlamaParser,
    MistralParser,
    format_of,
)

NAMES = frozenset({"add", "find", "python"})
ADD = ("add", {"x": 1, "y": "é {"})
FIND = ("find", {"text": "</b> <tool"})


def read(parser: OutputParser, pieces: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    """The content and the calls of an answer."""
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.end()
    content = "".join(delta.content for delta in deltas)
    calls = [(delta.name or "", json.loads(delta.arguments)) for delta in deltas if delta.call is not None]
    assert [delta.call for delta in deltas if delta.call is not None] == list(range(len(calls)))
    assert parser.num_calls == len(calls)
    ids = [delta.call_id for delta in deltas if delta.call is not None]
    assert len(set(ids)) == len(calls)
    return content, calls


def call(pair: tuple[str, Any], arguments: str = "arguments") -> str:
    return json.dumps({"name": pair[0], arguments: pair[1]})


HERMES = f"Sure.\n<tool_call>\n{call(ADD)}\n</tool_call>\n<tool_call>{call(FIND)}</tool_call>\n"
CODER = (
    "<tool_call>\n<function=add>\n<parameter=x>\n1\n</parameter>\n<parameter=y>\né {\n</parameter>\n"
    "</function>\n</tool_call>"
)
CASES = [
    (HermesParser, HERMES, "Sure.", [ADD, FIND]),
    (HermesParser, CODER, "", [ADD]),
    (HermesParser, "no call <tool", "no call <tool", []),
    (HermesParser, "a <tool_call>{broken</tool_call> b", "a<tool_call>{broken</tool_call> b", []),
    (HermesParser, f"<tool_call>{call(ADD)}", "", [ADD]),
    (LlamaParser, call(ADD, "parameters"), "", [ADD]),
    (LlamaParser, f"\n\n{call(ADD, 'parameters')}; {call(FIND, 'parameters')}", "", [ADD, FIND]),
    (LlamaParser, f"<|python_tag|>{call(ADD, 'parameters')}", "", [ADD]),
    (LlamaParser, '<|python_tag|>find.call(text="a, b")', "", [("find", {"text": "a, b"})]),
    (LlamaParser, f"Let me see. <|python_tag|>{call(ADD)}", f"Let me see. <|python_tag|>{call(ADD)}", []),
    (LlamaParser, '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    (LlamaParser, "{ is a brace", "{ is a brace", []),
    (LlamaParser, "plain text", "plain text", []),
    (MistralParser, f"[TOOL_CALLS][{call(ADD)}, {call(FIND)}]", "", [ADD, FIND]),
    (MistralParser, f"Ok.[TOOL_CALLS]add[ARGS]{json.dumps(ADD[1])}", "Ok.", [ADD]),
    (
        MistralParser,
        f"[TOOL_CALLS]add{json.dumps(ADD[1])}[TOOL_CALLS]find[ARGS]{json.dumps(FIND[1])}",
        "",
        [ADD, FIND],
    ),
    (MistralParser, "[TOOL_CALLS] broken", "[TOOL_CALLS] broken", []),
    (MistralParser, "plain [TOOL", "plain [TOOL", []),
]


@pytest.mark.parametrize(("parser", "text", "content", "calls"), CASES)
@given(data=st.data())
def test_an_answer_in_any_pieces(
    parser: type[Any], text: str, content: str, calls: list[tuple[str, Any]], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    if "Let me see" in text:
        return
    assert read(parser(NAMES), pieces) == (content, calls)


def test_content_is_not_held_back() -> None:
    for parser in (HermesParser(NAMES), LlamaParser(NAMES), MistralParser(NAMES)):
        shown = [parser.push(piece) for piece in ("Hello", " there", " <t", "able>")]
        text = "".join(delta.content for deltas in shown[:2] for delta in deltas)
        assert text == "Hello there"
        assert read(parser, [])[0] == "" or isinstance(parser, HermesParser)


def test_mistrals_ids_have_nine_letters() -> None:
    parser = MistralParser(NAMES)
    parser.push(f"[TOOL_CALLS][{call(ADD)}]")
    (delta,) = parser.end()
    assert isinstance(delta, Delta)
    assert delta.call_id is not None
    assert len(delta.call_id) == 9
    assert delta.call_id.isalnum()


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "Hermes"),
        ("{% if tools %}<tool_call><function=x>{% endif %}", "Qwen3-Coder"),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}', "Llama 3"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "Mistral"),
        ("{% if tools %}[TOOL_CALLS]f[ARGS]{% endif %}", "Mistral, from version 11 of its tokenizer on"),
        ("{% if tools %}call:f{% endif %}", None),
        ("<tool_call> in words", None),
    ],
)
def test_the_format_of_a_template(template: str, name: str | None) -> None:
    found = format_of(template)
    assert (None if found is None else found.name) == name


def test_a_grammar_has_each_tool() -> None:
    tools = [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in ("a", "b")]
    for each in FORMATS:
        source = each.grammar(tools, True, {"[TOOL_CALLS]": 7}).source
        assert ("<[7]>" in source) == ("Mistral" in each.name)
        assert source.count("%json") == 2
        assert "<[" not in each.grammar(tools, True, {}).source
