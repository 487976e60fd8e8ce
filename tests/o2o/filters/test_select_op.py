"""select.op.py cuts a graph: its parts, run one after the other, compute what the whole does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.filters.select_op import select
from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import (
    Graph,
    assert_same_results,
    conditional,
    decoder,
    feeds,
    float_models,
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
            select(part, graph, nodes)
            known |= run(part, {value.name or "": known[value.name or ""] for value in graph.inputs})
    assert_same_results(before, {name: known[name] for name in before})


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
