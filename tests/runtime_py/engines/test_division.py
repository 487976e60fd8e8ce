"""The division of a text between two forms: only where it is clearly faster, and pays for a second engine."""

from __future__ import annotations

import pytest

from runtime_py.engines.division import MAX_BYTES, Division, divide
from runtime_py.engines.phases import Phase
from runtime_py.engines.speed_trial import Form, Speed

LITERT, ONNX, ONE = Form("litert", 2), Form("onnx", 2), Form("onnx", 1)
EVERY = Speed(300e-6, 500e-6, 40e-6, 40e-6, load=0.1)


def test_a_clear_winner_runs_everything() -> None:
    slower = Speed(310e-6, 520e-6, 40e-6, 50e-6, load=0.1)
    assert divide({LITERT: EVERY, ONNX: slower}, 1000) is None
    assert divide({LITERT: EVERY}, 1000) is None
    assert divide({}, 1000) is None


def test_long_texts_on_another_engine() -> None:
    """As of 15 million weights: decode behind 512 tokens is faster on ONNX Runtime, prefill on LiteRT."""
    litert, onnx = Speed(262e-6, 776e-6, 39e-6, 33e-6, 0.06), Speed(290e-6, 459e-6, 41e-6, 45e-6, 0.06)
    division = divide({ONNX: onnx, LITERT: litert, ONE: Speed(1e-3, 1e-3, 1e-3, 1e-3)}, 1000)
    assert division == Division(LITERT, ONNX, frozenset({Phase.FAR_DECODE}))
    assert division.form(Phase.FAR_DECODE) == ONNX
    assert division.form(Phase.LONG_PROMPT) == LITERT
    assert division.description == "onnx (2 threads) for decode behind 256 tokens"
    assert division.name == "litert, with onnx for decode behind 256 tokens"
    assert divide({ONNX: onnx, LITERT: litert}, MAX_BYTES + 1) is None, "it would take twice the memory"


def test_one_engine_for_prompts_and_one_for_decode() -> None:
    prompts, steps = Speed(12e-3, 12e-3, 2e-3, 2e-3, 0.3), Speed(10e-3, 10e-3, 3e-3, 3e-3, 0.3)
    division = divide({LITERT: prompts, ONNX: steps}, 1000)
    assert division is not None
    assert {phase: division.form(phase) for phase in Phase} == {
        Phase.SHORT_PROMPT: LITERT,
        Phase.LONG_PROMPT: LITERT,
        Phase.NEAR_DECODE: ONNX,
        Phase.FAR_DECODE: ONNX,
    }


@pytest.mark.parametrize(("load", "pays"), [(0.01, True), (0.2, False)])
def test_a_second_engine_pays_for_its_loading(load: float, pays: bool) -> None:
    """It saves 20 us a token: 5 ms of a text."""
    other = Speed(300e-6, 500e-6, 60e-6, 20e-6, load)
    assert (divide({LITERT: EVERY, ONNX: other}, 1000) is not None) == pays


def test_prompts_that_were_not_measured_are_not_divided() -> None:
    one, two = Speed(300e-6, 500e-6, None, None, 0.01), Speed(400e-6, 400e-6, 20e-6, 20e-6, 0.01)
    division = divide({LITERT: one, ONNX: two}, 1000)
    assert division is not None
    assert division.phases <= {Phase.NEAR_DECODE, Phase.FAR_DECODE}
