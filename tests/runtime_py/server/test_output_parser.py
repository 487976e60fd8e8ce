"""Output parsers: the forms of deltas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.server.output_parser import Delta, PlainText, ReasoningParser


def test_deltas_have_openais_form() -> None:
    assert Delta().json == {}
    assert Delta(content="a", reasoning="b").json == {"content": "a", "reasoning_content": "b"}
    begin = Delta(call=1, call_id="c", name="f").json["tool_calls"]
    assert begin == [{"index": 1, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    assert Delta(call=1, arguments="{").json["tool_calls"] == [{"index": 1, "function": {"arguments": "{"}}]


def test_plain_text_is_content() -> None:
    parser = PlainText()
    assert [delta.content for text in ("a", "", "b") for delta in parser.push(text)] == ["a", "b"]
    assert parser.end() == []


@pytest.mark.parametrize(
    ("begun", "text", "reasoning", "content"),
    [
        (False, "<think>\nhm\n</think>\n\nyes ", "hm", "yes "),
        (True, "hm </think>yes", "hm", "yes"),
        (True, "hm and hm", "hm and hm", ""),
        (False, "  <thin air", "", "  <thin air"),
        (False, "yes <think>no</think>", "", "yes <think>no</think>"),
        (False, "<think></think>", "", ""),
        (False, "<thi", "", "<thi"),
    ],
)
@given(data=st.data())
def test_reasoning_in_any_pieces(
    begun: bool, text: str, reasoning: str, content: str, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    parser = ReasoningParser("<think>", "</think>", begun, PlainText())
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.end()
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    assert "".join(delta.content for delta in deltas) == content
