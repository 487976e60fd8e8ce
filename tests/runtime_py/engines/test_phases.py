"""The phases of a text."""

from __future__ import annotations

from runtime_py.engines.phases import BOUNDARY, Phase, named


def test_the_boundary() -> None:
    assert Phase.of_prompt(BOUNDARY) == Phase.SHORT_PROMPT
    assert Phase.of_prompt(BOUNDARY + 1) == Phase.LONG_PROMPT
    assert Phase.of_decode(BOUNDARY - 1) == Phase.NEAR_DECODE
    assert Phase.of_decode(BOUNDARY) == Phase.FAR_DECODE


def test_names() -> None:
    assert named({Phase.LONG_PROMPT, Phase.SHORT_PROMPT}) == "prompts"
    assert named({*Phase} - {Phase.NEAR_DECODE}) == "prompts, decode behind 256 tokens"
