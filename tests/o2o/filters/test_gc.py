"""gc.py removes what nothing needs, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from o2o import formats
from o2o.filters.gc import Gc
from o2o.formats.fingerprint import fingerprint
from o2o.formats.tensors import storage_key, stored_bytes
from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import (
    SAMPLES,
    Graph,
    assert_same_results,
    conditional,
    feeds,
    float_models,
    resource,
    run,
    shared_bytes,
    weights,
)


def collected(model: Model) -> Model:
    """`model` read back from its bytes and collected, in memory."""
    model = formats.loads(formats.dumps(model))
    Gc().apply(model, None)  # type: ignore[arg-type]
    return formats.loads(formats.dumps(model))


def test_removes_dead_nodes_constants_and_loose_tensors(command: Command) -> None:
    model = shared_bytes()
    after = command(model)
    first = after.graphs[0]
    assert [node.op_type for node in first] == ["FULLY_CONNECTED"]
    assert list(first.initializers) == ["weight"]
    assert not first.meta.get("loose")
    assert command.said == "gc.py: removed 1 operator, 2 constants, 1 loose tensor; 196 bytes of constants\n"
    assert after.history[-1]["filter"] == "gc.py"
    assert after.history[-1]["input"] == fingerprint(formats.loads(formats.dumps(model)))
    for graph, other in zip(model.graphs, after.graphs, strict=True):
        given = feeds(model, graph)
        assert_same_results(run(model, given, graph), run(after, given, other))


def test_what_is_shared_stays_shared() -> None:
    after = collected(shared_bytes())
    one, other = after.graphs[0].initializers["weight"], after.graphs[1].initializers["flat"]
    assert one.const_value is not None
    assert other.const_value is not None
    assert storage_key(one.const_value) == storage_key(other.const_value)
    assert stored_bytes(after) == 40 * 30 * 4


def test_a_chain_of_dead_nodes_goes_in_one_run(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2])
    y = graph.op("ABS", [x], [2], name="y")
    dead = y
    for _ in range(5):
        dead = graph.op("NEG", [dead], [2])
    graph.output(y)
    assert len(command(graph.model()).graphs[0]) == 1


def test_references_to_graphs_survive_removal_and_reordering(command: Command) -> None:
    model = conditional()
    model.graphs[1:] = model.graphs[:0:-1]  # the branches now come then, else, unused
    after = command(model)
    assert {graph.name for graph in after.graphs} == {"main", "else", "then"}
    x = np.float32([1, 2, 3])
    for condition, expected in ((True, x + 1), (False, x * 2)):
        result = run(after, {"c": np.array([condition]), "x": x})
        np.testing.assert_array_equal(result["y"], expected)


def test_a_dead_control_flow_operator_takes_its_graphs_along(command: Command) -> None:
    model = conditional()
    main = model.graphs[0]
    main.outputs[0] = next(value for value in main.inputs if value.name == "x")
    model.signatures.clear()
    after = command(model)
    assert [graph.name for graph in after.graphs] == ["main"]
    assert [value.name for value in after.graphs[0].inputs] == ["c", "x"], "inputs stay"


def test_side_effects_keep_an_operator_and_all_that_leads_to_it(command: Command) -> None:
    main, body, cond = Graph("main"), Graph("body"), Graph("cond")
    for graph in (body, cond):
        graph.input("i", [1], ir.DataType.INT32)
    cond.output(cond.constant("never", np.array([False])))
    handle = resource(body, "handle")
    names = [ir.AttrString("container", ""), ir.AttrString("sharedName", "v")]
    body.node("VAR_HANDLE", [], [handle], names)
    body.node("ASSIGN_VARIABLE", [handle, body.constant("seven", np.float32([7]))], [])
    body.output(body.ir.inputs[0])
    i, x = main.input("i", [1], ir.DataType.INT32), main.input("x", [1])
    last = main.value("last", [1], ir.DataType.INT32)
    counted = main.op("ADD", [i, i], [1], name="counted")
    graphs = [ir.AttrGraph("condSubgraphIndex", cond.ir), ir.AttrGraph("bodySubgraphIndex", body.ir)]
    main.node("WHILE", [counted], [last], graphs)  # its result is unused, but its body writes a variable
    main.output(main.op("ABS", [x], [1], name="y"))
    after = command(main.model(body, cond))
    assert [node.op_type for node in after.graphs[0]] == ["ADD", "WHILE", "ABS"]
    assert len(after.graphs) == 3


def test_attention_that_fills_a_cache_stays(command: Command) -> None:
    graph = Graph("main")
    x, cache = graph.input("x", [1, 1, 4]), graph.input("cache", [1, 1, 8, 4])
    position = graph.input("position", [1], ir.DataType.INT32)
    weight = graph.constant("weight", weights(4, 4))
    operands = [x, *[weight] * 4, None, None, None, cache, cache, position]
    graph.node("ATTENTION", operands, [graph.value("unused", [1, 1, 4])])
    graph.output(graph.op("ABS", [x], [1, 1, 4], name="y"))
    assert [node.op_type for node in command(graph.model()).graphs[0]] == ["ATTENTION", "ABS"]


def test_quantization_scales_stay_with_their_weights_and_go_with_them(command: Command) -> None:
    model = SAMPLES["blockwise"]()
    assert set(command(model).graphs[0].initializers) == {"before", "weight", "scales"}
    graph = Graph("main")
    graph.input("x", [1])
    graph.output(graph.ir.inputs[0])
    for value in ("weight", "scales"):
        graph.constant(value, weights(4))
    graph.ir.initializers["weight"].meta["quantization_constants"] = {
        "scales": graph.ir.initializers["scales"]
    }
    model = graph.model()
    Gc().apply(model, None)  # type: ignore[arg-type]
    assert not graph.ir.initializers


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_is_idempotent(name: str) -> None:
    once = collected(SAMPLES[name]())
    assert formats.dumps(collected(once)) == formats.dumps(once)


@given(float_models())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_computes_the_same(model: Model) -> None:
    given = feeds(model)
    after = collected(model)
    assert_same_results(run(model, given), run(after, given))
    used = {id(v) for node in after.graphs[0] for v in node.inputs} | {id(v) for v in after.graphs[0].outputs}
    assert all(id(value) in used for value in after.graphs[0].initializers.values())
    assert all(v.uses() or v.is_graph_output() for node in after.graphs[0] for v in node.outputs)
