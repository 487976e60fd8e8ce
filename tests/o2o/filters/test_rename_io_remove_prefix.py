"""rename.io.remove_prefix.py takes a prefix off inputs and outputs."""

from __future__ import annotations

from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import assert_same_results, decoder, feeds, linear, run


def test_takes_the_prefix_off_both_ends(command: Command) -> None:
    model = linear()
    given = feeds(model)
    before = run(model, given)
    graph = model.graphs[0]
    graph.inputs[0].name, graph.outputs[1].name = "net/x", "net/z"
    model.signatures[0].inputs = {"net/x": graph.inputs[0]}
    model.signatures[0].outputs = {"y": graph.outputs[0], "net/z": graph.outputs[1]}
    after = command(model, "net/")
    assert list(after.signatures[0].inputs) == ["x"]
    assert list(after.signatures[0].outputs) == ["y", "z"]
    assert_same_results(before, run(after, given))


def test_one_signature(command: Command) -> None:
    after = command(decoder(), "input_", "--signature", "decode")
    assert [graph.inputs[0].name for graph in after.graphs] == ["input_ids", "ids"]


def test_refusals(command: Command) -> None:
    assert command.refusal(linear(), "no/") == (2, "no input or output has a name that starts with 'no/'")
    assert command.refusal(linear(), "x") == (1, "'x' would have no name")
    assert command.refusal(linear(), "") == (2, "the prefix is empty")
