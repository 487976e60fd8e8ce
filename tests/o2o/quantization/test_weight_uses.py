"""The uses of a model's matrices, and why some cannot be quantized."""

from __future__ import annotations

import numpy as np

from o2o.quantization.weight_uses import Matrix, matrices
from tests.o2o.graphs import Graph, weights
from tests.o2o.quantization.models import language_model


def by_name(graph: Graph) -> dict[str | None, Matrix]:
    return {matrix.value.name: matrix for matrix in matrices(graph.model())}


def test_parts_of_a_language_model() -> None:
    parts = [sorted(matrix.parts) for matrix in matrices(language_model())]
    assert sorted(parts) == [["embedding"], ["head"], ["matrix"], ["matrix"]]


def test_one_storage_is_one_matrix() -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 128])
    first, second = graph.constant("a", weights(128, 128)), graph.constant("b", weights(128, 128))
    second.const_value = first.const_value
    graph.output(graph.fc(graph.fc(x, first, "y"), second, "z"))
    (matrix,) = by_name(graph).values()
    assert [value.name for _, value in matrix.values] == ["a", "b"]
    assert (len(matrix.uses), matrix.reason) == (2, "")


def test_reasons() -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 128])
    w = graph.constant("w", weights(128, 128))
    graph.output(graph.fc(x, w, "y"))
    graph.output(w)
    plain = graph.constant("v", np.ones((128, 128), np.float32))
    graph.output(graph.fc(x, plain, "z"))
    found = by_name(graph)
    assert (found["w"].reason, found["v"].reason) == ("it is an output", "")
