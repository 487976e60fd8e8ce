"""resize.tokens: signatures for other numbers of tokens, over the same weights."""

from __future__ import annotations

import pytest

from o2o.check.runner import signatures_io
from o2o.formats.tensors import stored_bytes
from tests.o2o.filters.conftest import Command
from tests.o2o.language_model_graphs import language_model
from tests.o2o.window_graphs import window_model


def test_replaced_by_several(command: Command) -> None:
    model = window_model(lengths=(6,))
    before = stored_bytes(model)
    after = command(model, "--tokens", "3,6,1,9", "--check")
    assert [signature.name for signature in after.signatures] == [
        "prefill_3",
        "prefill_6",
        "decode",
        "prefill_9",
    ]
    shapes = {name: io.inputs["ids"].shape for name, io in signatures_io(after).items()}
    assert shapes == {"prefill_3": (1, 3), "prefill_6": (1, 6), "decode": (1, 1), "prefill_9": (1, 9)}
    assert stored_bytes(after) < before + 1000
    lines = command.said.splitlines()
    assert lines[0] == (
        "resize.tokens.py: prefill_6 of 6 tokens became "
        "prefill_3 of 3, prefill_6 of 6, decode of 1, prefill_9 of 9"
    )
    assert "rows the same" in lines[1]
    assert after.history[-1]["arguments"] == ["--tokens", "3,6,1,9"]


def test_the_others_stay(command: Command) -> None:
    after = command(window_model(lengths=(6, 4, 1), rows=16), "--tokens", "5", "--check")
    assert [signature.name for signature in after.signatures] == ["prefill_5", "prefill_4", "decode"]
    assert len(after.graphs) == 3
    after = command(after, "--tokens", "2", "--signature", "prefill_4")
    assert [signature.name for signature in after.signatures] == ["prefill_5", "prefill_2", "decode"]
    code, message = command.refusal(after, "--tokens", "2")
    assert (code, message) == (2, "--tokens 2: the model has a signature prefill_2 already")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tokens", "0"], "--tokens: give numbers from 1 on, such as 64,128"),
        (["--tokens", "2,2"], "--tokens 2,2: give each number once"),
        (["--tokens", "2", "--signature", "x"], "there is no signature 'x'; there are: prefill_4, decode"),
    ],
)
def test_wrong_arguments(command: Command, arguments: list[str], expected: str) -> None:
    assert command.refusal(language_model(), *arguments) == (2, expected)


def test_refusals(command: Command) -> None:
    code, message = command.refusal(window_model(lengths=(1,)), "--tokens", "2")
    assert code == 1
    assert message.startswith("no signature reads 2 or more token ids")
    code, message = command.refusal(window_model(lengths=(4,), rows=16), "--tokens", "5")
    assert code == 1
    assert "a window cache has rows for as many tokens as before" in message
