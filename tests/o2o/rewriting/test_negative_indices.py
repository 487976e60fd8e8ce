from __future__ import annotations

import numpy as np

from o2o.operators.reference import run_graph
from o2o.rewriting.negative_indices import count_from_the_front
from tests.o2o.graphs import INT32, Graph


def test_indices_from_the_end_count_from_the_front() -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 5, 3])
    last = graph.constant("last", np.int32([-2, 1]))
    first = graph.constant("first", np.int32([0]))
    y = graph.op("GATHER", [x, last], [2, 2, 3], axis=1, batchDims=0)
    z = graph.op("GATHER", [x, first], [2, 1, 3], axis=1, batchDims=0)
    w = graph.op("GATHER", [x, graph.input("i", [1], INT32)], [2, 1, 3], axis=1, batchDims=0)
    graph.output(y, z, w)
    numbers = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    assert count_from_the_front(graph.ir) == 1
    node = y.producer()
    assert node is not None
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    assert node.inputs[1].const_value.numpy().tolist() == [3, 1]
    results = run_graph(graph.ir, {"x": numbers, "i": np.int32([2])})
    np.testing.assert_array_equal(results[y.name or ""], numbers[:, [-2, 1]])
