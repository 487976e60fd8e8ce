"""remove.io.py keeps the inputs and outputs that are chosen, and refuses to break the graph."""

from __future__ import annotations

import pytest

from o2o.contract import contract_of
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import (
    Graph,
    assert_same_results,
    conditional,
    decoder,
    feeds,
    linear,
    odd_names,
    run,
    sign,
)


@pytest.mark.parametrize("selector", [["--keep_by_name", "z"], ["--keep_by_id", "1"], ["--keep_by_id=1-1"]])
def test_keeps_an_output(command: Command, selector: list[str]) -> None:
    model = linear()
    given = feeds(model)
    before = run(model, given)
    after = command(model, "output", *selector)
    assert_same_results({"z": before["z"]}, run(after, given))
    assert list(after.signatures[0].outputs) == ["z"]
    assert len(after.graphs[0]) == 2, "what made the other output is left to gc.py"
    assert after.history[-1]["arguments"] == ["output", *selector]


def test_keeps_the_order_of_the_graph(command: Command) -> None:
    after = command(linear(), "output", "--keep_by_name", "z,y")
    assert [value.name for value in after.graphs[0].outputs] == ["y", "z"]


def test_every_graph_with_a_signature_is_meant(command: Command) -> None:
    model = decoder()
    after = command(model, "output", "--keep_by_name", "logits")
    assert [[v.name for v in graph.outputs] for graph in after.graphs] == [["logits"], ["logits"]]
    signatures = contract_of(after)["signatures"]
    assert [[entry["name"] for entry in signatures[name]["outputs"]] for name in signatures] == [
        ["logits"],
        ["logits"],
    ]
    given = feeds(model, model.graphs[1])
    logits = run(model, given, model.graphs[1])["logits"]
    assert_same_results({"logits": logits}, run(after, given, after.graphs[1]))


def test_one_signature(command: Command) -> None:
    after = command(decoder(), "output", "--keep_by_id", "0", "--signature", "decode")
    assert [len(graph.outputs) for graph in after.graphs] == [2, 1]


def test_names_of_the_signature_count_too(command: Command) -> None:
    after = command(odd_names(), "output", "--keep_by_name", "args_b")
    assert [len(signature.outputs) for signature in after.signatures] == [1, 1]


def test_removes_an_unused_input(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2])
    graph.input("unused", [3])
    graph.output(graph.op("ABS", [x], [2], name="y"))
    after = command(graph.model(), "input", "--keep_by_name", "x")
    assert [value.name for value in after.graphs[0].inputs] == ["x"]
    assert list(after.signatures[0].inputs) == ["x"]
    given = {"x": feeds(after)["x"]}
    run(after, given)


def test_refuses_to_remove_an_input_in_use(command: Command) -> None:
    code, message = command.refusal(decoder(), "input", "--keep_by_name", "input_ids,past_key_0")
    assert (code, message) == (1, "cannot remove the input cache_position: CAST offset uses it")


def test_says_when_only_dead_operators_use_it(command: Command) -> None:
    graph = Graph("main")
    x, other = graph.input("x", [2]), graph.input("other", [2])
    graph.op("NEG", [other], [2], name="dead")
    graph.output(graph.op("ABS", [x], [2], name="y"))
    code, message = command.refusal(graph.model(), "input", "--keep_by_id", "0")
    assert code == 1
    assert message.endswith("NEG dead uses it, although no output needs that: run gc.py first")


def test_refuses_to_remove_an_input_that_is_an_output(command: Command) -> None:
    graph = Graph("main")
    graph.output(graph.input("x", [2]))
    graph.input("y", [2])
    code, message = command.refusal(graph.model(), "input", "--keep_by_name", "y")
    assert (code, message) == (1, "cannot remove the input x: it is also an output")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input", "--keep_by_name", "nope"], "main has no input 'nope'; there are: x"),
        (["output", "--keep_by_name", "y,nope"], "main has no output 'nope'; there are: y, z"),
        (["output", "--keep_by_id", "0,2"], "main has no output 2; the last one is 1 (z)"),
        (["output", "--keep_by_id", "0-"], "argument --keep_by_id: '0-' is neither a number nor a range"),
        (["output", "--keep_by_id", "2-1"], "argument --keep_by_id: the range 2-1 is descending"),
        (["output", "--keep_by_name", "y,"], "argument --keep_by_name: 'y,' has an empty name"),
        (
            ["output", "--keep_by_name", "y", "--signature", "no"],
            "there is no signature 'no'; there are: main",
        ),
        (["output"], "one of the arguments --keep_by_name --keep_by_id is required"),
        (["outputs", "--keep_by_id", "0"], "argument io: invalid choice"),
    ],
)
def test_a_selector_that_matches_nothing(command: Command, arguments: list[str], message: str) -> None:
    code, refusal = command.refusal(linear(), *arguments)
    assert code == 2
    assert refusal.startswith(message)


def test_a_graph_with_only_some_of_the_names_is_in_doubt(command: Command) -> None:
    model = decoder()
    model.graphs[1].outputs.pop()
    model.signatures[1].outputs.popitem()
    code, message = command.refusal(model, "output", "--keep_by_name", "logits,key_0")
    assert code == 2
    assert message == "decode has no output 'key_0'; there are: logits (--signature selects one graph)"
    assert len(command(model, "output", "--keep_by_id", "1").graphs[0].outputs) == 1, (
        "none of them: not meant"
    )


def test_graphs_that_operators_run_are_not_meant(command: Command) -> None:
    model = conditional()
    sign(model, model.graphs[2])
    code, message = command.refusal(model, "output", "--keep_by_name", "r")
    assert code == 2
    assert message == "main has no output 'r'; there are: y"
    code, message = command.refusal(model, "output", "--keep_by_id", "0", "--signature", "else")
    assert code == 1
    assert message == "an operator of another graph runs the graph of else too"
