"""downcast.input_ids.py makes token ids int32, and every user agree."""

from __future__ import annotations

import numpy as np

from o2o.contract import Role, contract_of
from o2o.model import CUSTOM_DOMAIN, Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Graph,
    assert_same_results,
    decoder,
    feeds,
    linear,
    run,
    sign,
    weights,
)


def narrowed(given: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array.astype(np.int32) if name in names else array for name, array in given.items()}


def test_every_graph_runs_as_before_on_int32(command: Command) -> None:
    model = decoder()
    after = command(model)
    for graph, other in zip(model.graphs, after.graphs, strict=True):
        assert [value.dtype for value in other.inputs] == [INT32, INT64, FLOAT]
        assert [node.op_type for node in other] == [node.op_type for node in graph], "GATHER takes them as is"
        given = feeds(model, graph)
        assert_same_results(run(model, given, graph), run(after, narrowed(given, "input_ids"), other))
    entry = contract_of(after)["signatures"]["prefill"]["inputs"][0]
    assert entry == {"name": "input_ids", "role": "tokens", "dtype": "int32", "shape": [1, 4]}


def test_also(command: Command) -> None:
    model = decoder()
    after = command(model, "--also", "cache_position")
    for graph, other in zip(model.graphs, after.graphs, strict=True):
        cast = next(node for node in other if node.op_type == "CAST")
        assert cast.attributes["inDataType"].value == 2, "INT32"
        given = feeds(model, graph)
        both = narrowed(given, "input_ids", "cache_position")
        assert_same_results(run(model, given, graph), run(after, both, other))


def mixed() -> Model:
    """Ids that a GATHER, two additions, a CAST to int32 and a CAST to float use; no contract."""
    graph = Graph("main")
    ids = graph.input("tokens", [3], INT64)
    taken = graph.op(
        "GATHER", [graph.constant("table", weights(9, 2)), ids], [3, 2], FLOAT, axis=0, batchDims=0
    )
    one = graph.constant("one", np.int64([1]))
    plus = graph.op("ADD", [ids, one], [3], name="plus")
    twice = graph.op("ADD", [ids, ids], [3], name="twice")
    narrow = graph.op("CAST", [ids], [3], INT32, inDataType=4, outDataType=2)
    again = graph.op(
        "GATHER", [graph.constant("table2", weights(9)), narrow], [3], FLOAT, axis=0, batchDims=0
    )
    floating = graph.op("CAST", [ids], [3], FLOAT, inDataType=4, outDataType=0)
    graph.output(taken, plus, twice, again, floating)
    return graph.model()


def test_other_users_share_one_cast_and_a_cast_to_int32_goes(command: Command) -> None:
    model = mixed()
    after = command(model)
    assert [node.op_type for node in after.graphs[0]] == ["GATHER", "CAST", "ADD", "ADD", "GATHER", "CAST"]
    given = feeds(model)
    assert_same_results(run(model, given), run(after, narrowed(given, "tokens")))
    assert "main: tokens is int32 now, with a CAST for other users" in command.said


def test_a_cast_to_int32_that_is_an_output_stays(command: Command) -> None:
    graph = Graph("main")
    ids = graph.input("input_ids", [3], INT64)
    graph.output(graph.op("CAST", [ids], [3], INT32, "narrow", inDataType=4, outDataType=2))
    model = graph.model()
    after = command(model)
    given = feeds(model)
    assert_same_results(run(model, given), run(after, narrowed(given, "input_ids")))


def test_int32_already_is_fine(command: Command) -> None:
    once = command(decoder())
    twice = command(once)
    assert "prefill: input_ids is int32 already" in command.said
    assert [len(graph) for graph in twice.graphs] == [len(graph) for graph in once.graphs]


def test_a_role_goes_before_a_name(command: Command) -> None:
    graph = Graph("main")
    tokens, other = graph.input("ids", [2], INT64), graph.input("tokens", [2], INT64)
    tokens.meta["role"] = Role("tokens")
    graph.output(graph.op("ADD", [tokens, other], [2], name="y"))
    after = command(graph.model())
    assert [value.dtype for value in after.graphs[0].inputs] == [INT32, INT64]


def test_refusals(command: Command) -> None:
    code, message = command.refusal(linear())
    assert code == 2
    assert message == "no input is token ids, by role, data flow or name; there are: x"
    code, message = command.refusal(decoder(), "--also", "nope")
    assert code == 2
    assert message == "there is no input 'nope'; there are: input_ids, cache_position, past_key_0"
    code, message = command.refusal(decoder(), "--also", "past_key_0")
    assert (code, message) == (1, "prefill: past_key_0 is float32, not int64")


def test_an_output_that_is_the_input_stays_int64(command: Command) -> None:
    graph = Graph("main")
    ids = graph.input("input_ids", [2], INT64)
    graph.output(ids, graph.op("ADD", [ids, ids], [2], name="y"))
    model = graph.model()
    after = command(model)
    assert [value.dtype for value in after.graphs[0].outputs] == [INT64, INT64]
    given = feeds(model)
    before, results = run(model, given), run(after, narrowed(given, "input_ids"))
    assert [array.tolist() for array in results.values()] == [array.tolist() for array in before.values()]


def test_ids_index_an_embedding_whatever_their_name(command: Command) -> None:
    """As TICO names them. A position that indexes a table too, and is compared, stays."""
    graph = Graph("main")
    ids, position = graph.input("tico::input_ids", [3], INT64), graph.input("args_1", [3], INT64)
    table, angles = graph.constant("table", weights(9, 2)), graph.constant("angles", weights(5, 2))
    rows = [
        graph.op("GATHER", [values, index], [3, 2], FLOAT, name=name, axis=0, batchDims=0)
        for values, index, name in ((table, ids, "embedded"), (angles, position, "rotation"))
    ]
    later = graph.op("GREATER", [graph.constant("keys", np.arange(3)), position], [3], BOOL, name="later")
    graph.output(*rows, later)
    after = command(graph.model())
    assert [value.dtype for value in after.graphs[0].inputs] == [INT32, INT64]


def test_each_signature_without_a_contract(command: Command) -> None:
    graphs = []
    for name, count in (("prefill", 4), ("decode", 1)):
        graph = Graph(name)
        ids = graph.input(f"tico::input_ids_{count}", [1, count], INT64)
        table = graph.constant("table", weights(9, 2))
        graph.output(graph.op("GATHER", [table, ids], [1, count, 2], FLOAT, axis=0, batchDims=0))
        graphs.append(graph)
    model = graphs[0].model(graphs[1])
    sign(model, graphs[1].ir)
    after = command(model)
    assert [value.dtype for graph in after.graphs for value in graph.inputs] == [INT32, INT32]


def test_a_custom_operator_called_cast_gets_what_it_got(command: Command) -> None:
    graph = Graph("main")
    ids, y = graph.input("input_ids", [1, 2], INT64), graph.value("y", [1, 2])
    graph.node("CAST", [ids], [y], domain=CUSTOM_DOMAIN)
    graph.output(y)
    after = command(graph.model())
    assert [(node.domain, node.op_type) for node in after.graphs[0]] == [
        ("circle", "CAST"),
        (CUSTOM_DOMAIN, "CAST"),
    ]
    assert after.graphs[0][1].inputs[0].dtype == INT64
