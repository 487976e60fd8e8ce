"""Token ids and positions among the integer inputs."""

from __future__ import annotations

import numpy as np

from o2o.roles.positions import integer_inputs
from tests.o2o.graphs import BOOL, INT64, Graph, weights


def test_ids_that_are_guarded_against_negative_ones() -> None:
    """JAX and TensorFlow add the size to ids below 0: that comparison makes no position of them."""
    graph = Graph("main")
    ids = graph.input("ids", [3], INT64)
    zero, size = graph.constant("zero", np.int64([0])), graph.constant("size", np.int64([9]))
    negative = graph.op("LESS", [ids, zero], [3], BOOL)
    wrapped = graph.op("SELECT_V2", [negative, graph.op("ADD", [ids, size], [3], INT64), ids], [3], INT64)
    table = graph.constant("table", weights(9, 2))
    graph.output(graph.op("GATHER", [table, wrapped], [3, 2], axis=0, batchDims=0))
    result = integer_inputs(graph.ir)
    assert (result.tokens, result.positions) == ([ids], [])


def test_the_largest_table_is_the_embedding() -> None:
    graph = Graph("main")
    kinds, ids = graph.input("kinds", [3], INT64), graph.input("ids", [3], INT64)
    rows = [
        graph.op("GATHER", [graph.constant(f"table_{size}", weights(size, 2)), index], [3, 2], axis=0)
        for size, index in ((2, kinds), (9, ids))
    ]
    graph.output(*rows)
    assert integer_inputs(graph.ir).tokens == [ids, kinds]


def test_positions_are_rotations_places_and_comparisons() -> None:
    graph = Graph("main")
    names = ("turned", "written", "compared", "other")
    turned, written, compared, other = (graph.input(name, [1], INT64) for name in names)
    angle = graph.op("SIN", [graph.op("CAST", [turned], [1], inDataType=4, outDataType=0)], [1])
    cache = graph.input("cache", [4])
    rows = graph.op("DYNAMIC_UPDATE_SLICE", [cache, angle, written], [4])
    later = graph.op("GREATER", [graph.constant("keys", np.arange(4)), compared], [4], BOOL)
    graph.output(rows, later, graph.op("ADD", [other, other], [1], INT64))
    assert integer_inputs(graph.ir).positions == [turned, written, compared]
