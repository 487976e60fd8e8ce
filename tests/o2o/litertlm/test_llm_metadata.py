"""LlmMetadata: its fields, on the wire and back."""

from __future__ import annotations

import pytest

from o2o.errors import ModelError
from o2o.litertlm.llm_metadata import TOP_P, LlmMetadata, Sampler

WHOLE = LlmMetadata(
    start=(1,),
    stops=((2,), (3, 4), "<end>"),
    max_tokens=512,
    template="{{ messages }}",
    sampler=Sampler(TOP_P, 40, 0.5, 2.0),
    pad=0,
    suppressed=(7, 8),
    supports_thinking=True,
    supports_tools=True,
)


def test_what_is_packed_is_parsed() -> None:
    assert LlmMetadata.parse(WHOLE.packed()) == WHOLE
    assert LlmMetadata.parse(LlmMetadata().packed()) == LlmMetadata()


def test_the_wire_format() -> None:
    """By the numbers of its fields: start 1, stop 2, max 5, model type 6 (generic 1), template 7, flags."""
    packed = LlmMetadata(start=(1,), stops=((2,),), max_tokens=300, template="x").packed()
    assert packed.hex(" ") == (
        "0a 04 0a 02 08 01 12 04 0a 02 08 02 28 ac 02 32 02 0a 00 3a 01 78 58 00 60 00"
    )


def test_fields_that_are_not_known_are_ignored() -> None:
    assert LlmMetadata.parse(WHOLE.packed() + bytes.fromhex("7205312e372e30")) == WHOLE


def test_text_around_messages() -> None:
    affixes = bytes.fromhex("1a 0e 0a 06 0a 02 3c 75 12 00 12 04 0a 02 3c 6d".replace(" ", ""))
    parsed = LlmMetadata.parse(affixes)
    assert parsed.affixes == {"user": ("<u", ""), "assistant": ("<m", ""), "system": ("", "")}


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\x08", b"PNG\r\n"])
def test_damage(data: bytes) -> None:
    with pytest.raises(ModelError, match="LlmMetadata is damaged"):
        LlmMetadata.parse(data)
