"""Output parsers: the forms of deltas."""

from __future__ import annotations

from runtime_py.server.output_parser import Delta, PlainText


def test_deltas_have_openais_form() -> None:
    assert Delta().json == {}
    assert Delta(content="a", reasoning="b").json == {"content": "a", "reasoning_content": "b"}
    begin = Delta(call=1, call_id="c", name="f").json["tool_calls"]
    assert begin == [{"index": 1, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    assert Delta(call=1, arguments="{").json["tool_calls"] == [{"index": 1, "function": {"arguments": "{"}}]


def test_plain_text_is_content() -> None:
    parser = PlainText()
    assert [delta.content for text in ("a", "", "b") for delta in parser.push(text, 0)] == ["a", "b"]
    assert parser.end() == []
