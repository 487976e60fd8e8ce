"""select.op.py cuts a graph: its parts, run one after the other, compute what the whole does."""

from __future__ import annotations

import re

import flatbuffers
import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert import schema_py_generated as tfl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.model import Model
from o2o.rewriting.extraction import extract
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import (
    Graph,
    assert_same_results,
    call_once,
    conditional,
    decoder,
    feeds,
    float_models,
    linear,
    odd_names,
    run,
    stateful,
)


def chain() -> Model:
    """a = |x|, b = a + u, c = -b, d = a * c; c and d are outputs; u is an input, and v one without users."""
    graph = Graph("main")
    x, u = graph.input("x", [2]), graph.input("u", [2])
    graph.input("v", [1])
    a = graph.op("ABS", [x], [2], name="a")
    b = graph.op("ADD", [a, u], [2], name="b")
    c = graph.op("NEG", [b], [2], name="c")
    d = graph.op("MUL", [a, c], [2], name="d")
    graph.output(c, d)
    return graph.model()


def names(model: Model) -> tuple[list[str | None], list[str | None]]:
    graph = model.graphs[0]
    return [value.name for value in graph.inputs], [value.name for value in graph.outputs]


@pytest.mark.parametrize(
    ("chosen", "inputs", "outputs"),
    [
        ("0-3", ["x", "u", "v"], ["c", "d"]),
        ("0", ["x", "v"], ["a"]),
        ("0-1", ["x", "u", "v"], ["a", "b"]),
        ("1", ["u", "v", "a"], ["b"]),
        ("2,3", ["v", "b", "a"], ["c", "d"]),
        ("3", ["v", "a", "c"], ["d"]),
        ("0,3", ["x", "v", "c"], ["d", "a"]),
    ],
)
def test_cuts_and_keeps_the_order(
    command: Command, chosen: str, inputs: list[str], outputs: list[str]
) -> None:
    model = chain()
    after = command(model, "--by_id", chosen)
    assert names(after) == (inputs, outputs)
    assert [list(after.signatures[0].inputs), list(after.signatures[0].outputs)] == [inputs, outputs]
    run(after, feeds(after))


def test_all_of_it_is_what_it_was(command: Command) -> None:
    model = chain()
    untouched = formats.dumps(formats.loads(formats.dumps(model)))
    after = command(model, "--by_id", "0-3")
    after.history.clear()
    assert formats.dumps(after) == untouched


@given(float_models(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_head_and_tail_compute_what_the_whole_does(model: Model, data: st.DataObject) -> None:
    given = feeds(model)
    before = run(model, given)
    cut = data.draw(st.integers(1, len(model.graphs[0])))
    known = dict(given)
    for keep in (slice(0, cut), slice(cut, None)):
        part = formats.loads(formats.dumps(model))
        graph = part.graphs[0]
        if nodes := set(list(graph)[keep]):
            extract(part, graph, nodes)
            known |= run(part, {value.name or "": known[value.name or ""] for value in graph.inputs})
    assert_same_results(before, {name: known[name] for name in before})


@pytest.mark.parametrize(
    ("arguments", "operators", "inputs", "outputs"),
    [
        ("--from a --to c", ["ADD", "NEG"], ["a", "u"], ["c"]),
        ("--from a --to c,b", ["ADD", "NEG"], ["a", "u"], ["c", "b"]),
        ("--from b,a --to d", ["NEG", "MUL"], ["b", "a"], ["d"]),
        ("--from a", ["ADD", "NEG", "MUL"], ["a", "u"], ["c", "d"]),
        ("--to b", ["ABS", "ADD"], ["x", "u"], ["b"]),
        ("--from u --to d", ["ADD", "NEG", "MUL"], ["u", "a"], ["d"]),
        ("--from x --from u --to [bc]", ["ABS", "ADD", "NEG"], ["x", "u"], ["b", "c"]),
    ],
)
def test_between_boundaries(
    command: Command, arguments: str, operators: list[str], inputs: list[str], outputs: list[str]
) -> None:
    after = command(chain(), *arguments.split(), "--check")
    assert names(after) == (inputs, outputs)
    assert [list(after.signatures[0].inputs), list(after.signatures[0].outputs)] == [inputs, outputs]
    assert [node.op_type for node in after.graphs[0]] == operators
    needed = [name for name in inputs if name not in arguments]
    assert ("it needs these inputs too: " + ", ".join(needed) in command.said) == bool(
        needed and "--from" in arguments
    )
    before = run(chain(), feeds(chain()))
    every = chain()
    every.graphs[0].outputs[:] = [node.outputs[0] for node in every.graphs[0]]
    known = {**feeds(chain()), **run(every, feeds(chain())), **before}
    results = run(after, {name: known[name] for name in inputs})
    assert_same_results({name: known[name] for name in outputs}, results)


def test_constants_stay(command: Command) -> None:
    """Also those that an operator computes from constants alone."""
    graph = Graph("main")
    x = graph.input("x", [2])
    table = graph.op("NEG", [graph.constant("table", np.float32([1, 2]))], [2], name="negated")
    y = graph.op("MUL", [graph.op("ABS", [x], [2], name="a"), table], [2], name="y")
    graph.output(y)
    after = command(graph.model(), "--from", "a", "--to", "y", "--check")
    assert names(after) == (["a"], ["y"])
    np.testing.assert_array_equal(run(after, {"a": np.float32([3, 4])})["y"], [-3, -8])


def test_a_part_of_the_results_of_an_operator(command: Command) -> None:
    """One result of SPLIT is a boundary, the other is computed."""
    graph = Graph("main")
    x = graph.input("x", [4])
    left, right = graph.value("left", [2]), graph.value("right", [2])
    graph.node(
        "SPLIT", [graph.constant("axis", np.int32(0)), x], [left, right], [ir.AttrInt64("numSplits", 2)]
    )
    graph.output(graph.op("SUB", [left, right], [2], name="y"))
    after = command(graph.model(), "--from", "x,left", "--to", "y", "--check")
    assert names(after) == (["x", "left"], ["y"])
    given = {"x": np.float32([1, 2, 3, 4]), "left": np.float32([10, 20])}
    np.testing.assert_array_equal(run(after, given)["y"], [7, 16])


def test_names_in_signatures(command: Command) -> None:
    model = chain()
    signature = model.signatures[0]
    signature.inputs = {f"in_{name}": value for name, value in signature.inputs.items()}
    signature.outputs = {f"out_{name}": value for name, value in signature.outputs.items()}
    after = command(model, "--from", "in_x", "--to", "out_d", "--signature", "main", "--check")
    assert list(after.signatures[0].inputs) == ["in_x", "in_u"]
    assert list(after.signatures[0].outputs) == ["out_d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give either --by_id, or --from and --to (--help explains)"),
        ("--by_id 0 --to a", "give either --by_id, or --from and --to (--help explains)"),
        ("--to hidden", "main has no tensor 'hidden'; inspect.model.py --html shows all tensors"),
        (
            "--from model.layer --to d",
            "main has no tensor 'model.layer'; inspect.model.py --html shows all tensors",
        ),
        ("--from v --to d", "no operator leads from a tensor of --from to d"),
        ("--from c --to b", "no operator leads from a tensor of --from to b"),
        ("--to x", "no operator leads from an input to x"),
        (
            "--from a,v --to d",
            "no operator leads from v to a tensor of --to, or all paths cross another --from",
        ),
        ("--from v", "no operator leads from v to an output, or all paths cross another --from"),
    ],
)
def test_boundaries_that_do_not_fit(command: Command, arguments: str, message: str) -> None:
    assert command.refusal(chain(), *arguments.split()) == (2, message)


def test_a_constant_is_no_boundary(command: Command) -> None:
    code, message = command.refusal(linear(), "--from", "weight")
    assert (code, message) == (
        2,
        "weight of main is a constant: name a tensor that an operator computes",
    )


def test_one_of_several_graphs(command: Command) -> None:
    model = decoder()
    after = command(model, "--by_id", "0", "--signature", "decode")
    assert [len(graph) for graph in after.graphs] == [len(model.graphs[0]), 1]
    code, message = command.refusal(model, "--by_id", "0")
    assert (code, message) == (2, "there are several graphs (prefill, decode): choose one with --signature")


def test_branches_go_along(command: Command) -> None:
    after = command(conditional(), "--by_id", "0")
    result = run(after, {"c": np.array([True]), "x": np.float32([1, 2, 3])})
    np.testing.assert_array_equal(result["y"], [2, 3, 4])


def test_variables_stay_variables(command: Command) -> None:
    after = command(stateful(), "--by_id", "0")
    assert names(after) == (["x"], ["y"])


def test_numbers_beyond_the_end(command: Command) -> None:
    code, message = command.refusal(chain(), "--by_id", "0-181,200")
    assert (code, message) == (2, "main has no operator 200; the last one is 3")


def test_check_compares_tensors_without_names_and_with_equal_names(command: Command) -> None:
    assert names(command(odd_names(), "--by_id", "1", "--check"))[0] != []


def overwritten() -> bytes:
    """z = x + 1, w = z + y, in which the first operator writes z, an input of the graph."""
    graph = Graph("main")
    x, y, _ = (graph.input(name, [3]) for name in "xyz")
    one = graph.constant("one", np.ones(3, np.float32))
    sums = graph.op("ADD", [x, one], [3], name="sums")
    graph.output(graph.op("ADD", [sums, y], [3], name="w"))
    table = tfl.ModelT.InitFromObj(tfl.Model.GetRootAs(formats.dumps(graph.model(format="tflite")), 0))
    (subgraph,) = table.subgraphs
    names = [tensor.name for tensor in subgraph.tensors]
    first, second = subgraph.operators
    first.outputs = second.inputs = [names.index(b"z")]
    second.inputs = [names.index(b"z"), names.index(b"y")]
    builder = flatbuffers.Builder(1024)
    builder.Finish(table.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("chosen", "inputs", "output"),
    [
        (["--by_id", "0"], ["x", "z"], "z#"),
        (["--by_id", "1"], ["y", "z", "z#"], "w"),
        (["--by_id", "0-1"], ["x", "y", "z"], "w"),
        (["--from", "z", "--to", "w"], ["z", "y"], "w"),
    ],
)
def test_an_operator_that_writes_an_input(
    command: Command, chosen: list[str], inputs: list[str], output: str
) -> None:
    part = command(formats.loads(overwritten()), *chosen, "--check")
    assert [re.sub("#.*", "#", name or "") for some in names(part) for name in some] == [*inputs, output]


def test_a_part_cannot_be_cut_at_a_resource(command: Command) -> None:
    code, error = command.refusal(call_once(), "--by_id", "0-1", "--check")
    assert code == 1
    assert re.search("cut at .*, a resource or variant", error)
