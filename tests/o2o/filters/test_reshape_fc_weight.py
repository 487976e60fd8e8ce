"""reshape.fc_weight.py gives weights two axes, and copies none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import storage_key
from o2o.model import Model, shape_of
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, assert_same_results, feeds, linear, per_channel, run, weights
from tests.tolerances import assert_close


def deep(used_elsewhere: bool = False) -> Model:
    """Two FULLY_CONNECTED over one weight [1,1,3,4], and perhaps an ABS of it."""
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    weight = graph.constant("weight", weights(1, 1, 3, 4))
    graph.output(graph.fc(x, weight, "y"), graph.fc(graph.op("NEG", [x], [2, 4]), weight, "z"))
    if used_elsewhere:
        graph.output(graph.op("ABS", [weight], [1, 1, 3, 4], name="a"))
    return graph.model()


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    weight = weights(3, 4)
    return {"y": x @ weight.T, "z": -x @ weight.T, "a": np.abs(weight).reshape(1, 1, 3, 4)}


def test_the_only_use(command: Command) -> None:
    after = command(deep())
    graph = after.graphs[0]
    assert [shape_of(value) for value in graph.initializers.values()] == [(3, 4)]
    given = feeds(after)
    for name, array in run(after, given).items():
        assert_close(array, expected(given["x"])[name])
    assert command.said == "reshape.fc_weight.py: reshaped 1 weight\n"


def test_others_keep_the_old_shape_over_the_same_bytes(command: Command) -> None:
    after = command(deep(used_elsewhere=True))
    old, new = (after.graphs[0].initializers[name] for name in ("weight", "weight_2d"))
    assert (shape_of(old), shape_of(new)) == ((1, 1, 3, 4), (3, 4))
    assert old.const_value is not None
    assert new.const_value is not None
    assert storage_key(old.const_value) == storage_key(new.const_value)
    given = feeds(after)
    for name, array in run(after, given).items():
        assert_close(array, expected(given["x"])[name])


def test_quantization_keeps_its_axis(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    weight = graph.constant("weight", np.arange(12, dtype=np.int8).reshape(1, 1, 3, 4))
    weight.meta["fields"] = {"quantization": per_channel([0.5, 0.25, 2], axis=2)}
    graph.output(graph.fc(x, weight, "y"), weight)
    after = command(graph.model())
    axes = {
        value.name: value.meta["fields"]["quantization"].quantizedDimension
        for value in after.graphs[0].initializers.values()
    }
    assert axes == {"weight": 2, "weight_2d": 0}
    given = feeds(after)
    scale = np.float32([0.5, 0.25, 2])
    weight_ = np.arange(12).reshape(3, 4) * scale[:, None]
    np.testing.assert_allclose(run(after, given)["y"], given["x"] @ weight_.T, rtol=0.02, atol=0.3)


def test_packed_int4(command: Command) -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 4])
    weight = graph.raw_constant("weight", bytes(range(6)), [1, 3, 4], ir.DataType.INT4)
    graph.output(graph.fc(x, weight, "y"), graph.op("ABS", [weight], [1, 3, 4], name="a"))
    after = command(graph.model())
    old, new = (after.graphs[0].initializers[name].const_value for name in ("weight", "weight_2d"))
    assert old is not None
    assert new is not None
    assert old.tobytes() == new.tobytes() == bytes(range(6))
    assert tuple(new.shape) == (3, 4)


def test_two_axes_already(command: Command) -> None:
    model = linear()
    given = feeds(model)
    assert_same_results(run(model, given), run(command(model), given))
    assert command.said == "reshape.fc_weight.py: reshaped 0 weights\n"


def test_what_is_left_alone(command: Command) -> None:
    graph = Graph("main")
    x, w = graph.input("x", [2, 4]), graph.input("w", [1, 3, 4])
    graph.output(graph.fc(x, w, "a"), graph.fc(x, graph.constant("c", weights(2, 3, 4)), "b"))
    command(graph.model())
    assert command.said == "reshape.fc_weight.py: reshaped 0 weights, left 2 alone\n"
