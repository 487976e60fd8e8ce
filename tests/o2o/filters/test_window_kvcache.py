"""window.kvcache: caches of layers with a window hold the window's rows."""

from __future__ import annotations

import pytest

from o2o.contract import contract_of
from o2o.lower.litert import lower_to_litert
from tests.o2o.filters.conftest import Command
from tests.o2o.language_model_graphs import language_model
from tests.o2o.window_graphs import WINDOW, S, window_model


def rows(model) -> dict[int, set[int]]:
    """The rows of the caches of each layer, in all signatures."""
    entries = [e for of in contract_of(model)["signatures"].values() for e in of["inputs"] if "layer" in e]
    return {layer: {e["shape"][2] for e in entries if e["layer"] == layer} for layer in (0, 1)}


def test_window_caches(command: Command) -> None:
    after = command(window_model(), "--check")
    assert command.said.splitlines()[0] == (
        "window.kvcache.py: 1 layer with windows of 5: 13 rows in place of 48"
    )
    assert rows(after) == {0: {13}, 1: {S}}
    command(after)
    assert command.said == "window.kvcache.py: no layer with a full KV cache has a window: nothing to do\n"


def test_rows_that_are_asked_for(command: Command) -> None:
    assert rows(command(window_model(), "--rows", "20", "--check")) == {0: {20}, 1: {S}}


@pytest.mark.parametrize("number", [7, S])
def test_too_few_and_too_many_rows(command: Command, number: int) -> None:
    assert command.refusal(window_model(), "--rows", str(number)) == (
        2,
        f"--rows {number}: windows of {WINDOW} and runs of 4 tokens need 8 rows or more, and fewer than "
        f"the {S} of a full cache",
    )


def test_caches_that_are_small_stay_full(command: Command) -> None:
    model = window_model(lengths=(12, 1))
    assert rows(command(model)) == {0: {S}, 1: {S}}
    assert command.said == "window.kvcache.py: windows of 5 need 29 rows of 48: caches stay full\n"


@pytest.mark.parametrize("model", [language_model, lambda: lower_to_litert(window_model())])
def test_without_windows(command: Command, model) -> None:
    command(model())
    assert "no layer with a full KV cache has a window: nothing to do" in command.said


def test_rows_read_elsewhere(command: Command) -> None:
    model = window_model(lengths=[1])
    (position,) = (value for value in model.graphs[0].inputs if value.name == "position")
    position.meta.pop("role")
    code, message = command.refusal(model)
    expected = "the KV caches cannot be cut to their windows: decode does not take the position"
    assert (code, message.startswith(expected)) == (1, True), message
