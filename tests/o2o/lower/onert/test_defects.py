"""DEFECTS OF ONERT 0.1.0 that `o2o.lower.onert` works around, each as it is.

A test that fails here is good news: a later onert has mended that defect, and what works around it can go.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.formats.writer import plan
from o2o.model import Model
from o2o.operators import reference
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import FLOAT, INT32, Graph, feeds, per_channel, weights
from tests.o2o.lower.onert.running import CRASHED, run, run_all
from tests.tolerances import assert_close

MENDED = "this defect is mended: see what o2o.lower.onert does because of it"


def model_of(make: Callable[[Graph, ir.Value], ir.Value], *shape: int) -> Model:
    graph = Graph("main")
    graph.output(make(graph, graph.input("x", shape)))
    return graph.model()


def results(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The first output as onert computes it, and as it should be."""
    given = feeds(model)
    (found, *_), (expected, *_) = (
        list(some.values()) for some in (run(model, given), reference.run_graph(model.graphs[0], given))
    )
    return found, expected


def refusal(model: Model) -> str:
    (result,) = run_all([(model, feeds(model))])
    assert isinstance(result, str), MENDED
    return result


def test_rope_of_several_positions_rotates_all_by_the_first() -> None:
    def rope(graph: Graph, x: ir.Value) -> ir.Value:
        tables = [graph.constant(name, weights(1, 1, 3, 4, seed=k)) for k, name in enumerate("sc")]
        return graph.op("ROPE", [x, *tables], [1, 2, 3, 4], mode=0)

    found, expected = results(model_of(rope, 1, 2, 3, 4))
    assert_close(found[:, :, 0], expected[:, :, 0])
    assert not np.allclose(found, expected), MENDED


def test_fully_connected_drops_leading_axes() -> None:
    found, expected = results(model_of(lambda g, x: g.fc(x, g.constant("w", weights(5, 4)), "y"), 1, 3, 4))
    assert_close(found.reshape(-1), expected.reshape(-1))
    assert (found.shape, expected.shape) == ((3, 5), (1, 3, 5)), MENDED


def int8(graph: Graph, shape: tuple[int, ...], scales: list[float]) -> ir.Value:
    value = graph.constant("w", (weights(*shape) * 40).clip(-127, 127).astype(np.int8))
    value.meta["fields"] = {"quantization": per_channel(scales)}
    return value


def test_int8_weights_by_row_are_all_scaled_as_the_first() -> None:
    def fc(graph: Graph, x: ir.Value) -> ir.Value:
        return graph.op("FULLY_CONNECTED", [x, int8(graph, (2, 4), [1.0, 5.0]), None], [1, 2])

    model = model_of(fc, 1, 4)
    w = next(v for v in model.graphs[0].initializers.values()).const_value
    assert w is not None
    x = feeds(model)["x"]
    found = run(model, {"x": x}).popitem()[1]
    by_the_first = x @ w.numpy().astype(np.float32).T
    np.testing.assert_allclose(found, by_the_first, rtol=0.03, atol=1)
    assert not np.allclose(found, by_the_first * [1, 5], rtol=0.03, atol=1), MENDED


def test_dequantize_by_row_scales_all_as_the_first() -> None:
    def widened(graph: Graph, x: ir.Value) -> ir.Value:
        w = graph.op("DEQUANTIZE", [int8(graph, (2, 4), [1.0, 5.0])], [2, 4], FLOAT)
        return graph.op("ADD", [w, x], [2, 4])

    model = model_of(widened, 2, 4)
    w = next(v for v in model.graphs[0].initializers.values()).const_value
    assert w is not None
    found = run(model, {"x": np.zeros((2, 4), np.float32)}).popitem()[1]
    np.testing.assert_array_equal(found, w.numpy())
    assert not np.allclose(found, w.numpy() * np.float32([[1], [5]])), MENDED


def test_an_output_that_is_read_inside_is_written_over() -> None:
    graph = Graph("main")
    x = graph.input("x", [64])
    inner = graph.op("ADD", [x, x], [64], name="inner")
    y = inner
    for number in range(6):
        y = graph.op("MUL", [y, graph.constant("two", np.float32([2]))], [64], name=f"y{number}")
    graph.output(y, inner)
    model = graph.model()
    given = feeds(model)
    found, expected = run(model, given), reference.run_graph(graph.ir, given)
    np.testing.assert_allclose(found["y5"], expected["y5"])
    assert not np.allclose(found["inner"], expected["inner"]), MENDED


def test_a_slice_of_five_axes_is_of_others() -> None:
    def sliced(graph: Graph, x: ir.Value) -> ir.Value:
        bounds = [graph.constant("c", np.int32(numbers)) for numbers in ([0, 0, 0, 0, 4], [1, 1, 3, 4, 4])]
        return graph.op("SLICE", [x, *bounds], [1, 1, 3, 4, 4])

    found, expected = results(model_of(sliced, 1, 1, 3, 4, 8))
    assert not np.allclose(found, expected), MENDED


def test_parts_of_split_v_are_empty() -> None:
    graph = Graph("main")
    x = graph.input("x", [1, 8])
    parts = [graph.value(name, [1, size]) for name, size in (("first", 5), ("second", 3))]
    sizes = [graph.constant("sizes", np.int32([5, 3])), graph.constant("axis", np.int32(1))]
    graph.node("SPLIT_V", [x, *sizes], parts, [ir.AttrInt64("numSplits", 2)])
    graph.output(*parts)
    found = run(graph.model(), {"x": np.ones((1, 8), np.float32)})
    assert not (found["first"] == 1).all(), MENDED


@pytest.mark.parametrize("shape", [(3, 8), (1, 1, 1, 3, 8)])
def test_rms_norm_takes_three_or_four_axes(shape: tuple[int, ...]) -> None:
    def norm(graph: Graph, x: ir.Value) -> ir.Value:
        return graph.op("RMS_NORM", [x, graph.constant("w", weights(8))], shape, epsilon=1e-5)

    refusal(model_of(norm, *shape))


def test_products_with_a_constant_on_their_left_are_refused() -> None:
    def product(graph: Graph, x: ir.Value) -> ir.Value:
        return graph.op("BATCH_MATMUL", [graph.constant("w", weights(1, 4, 1)), x], [1, 4, 1])

    refusal(model_of(product, 1, 1, 1))


def test_there_is_no_attention() -> None:
    refusal(attention(Form(layout="BNTH")))


def test_there_is_no_dynamic_update_slice() -> None:
    graph = Graph("main")
    x, row, start = (
        graph.input("x", [1, 2, 4, 3]),
        graph.input("row", [1, 2, 1, 3]),
        graph.input("start", [4], INT32),
    )
    graph.output(graph.op("DYNAMIC_UPDATE_SLICE", [x, row, start], [1, 2, 4, 3]))
    refusal(graph.model())


def test_there_is_no_embedding_lookup() -> None:
    graph = Graph("main")
    ids = graph.input("ids", [2], INT32)
    graph.output(graph.op("EMBEDDING_LOOKUP", [ids, graph.constant("t", weights(9, 4))], [2, 4], FLOAT))
    refusal(graph.model())


def test_int8_tables_are_not_looked_up() -> None:
    graph = Graph("main")
    ids = graph.input("ids", [2], INT32)
    rows = graph.op("GATHER", [int8(graph, (9, 4), [1.0]), ids], [2, 4], ir.DataType.INT8, axis=0)
    rows.meta["fields"] = {"quantization": per_channel([1.0])}
    graph.output(graph.op("DEQUANTIZE", [rows], [2, 4], FLOAT))
    refusal(graph.model())


def test_constants_behind_the_flatbuffer_crash_it() -> None:
    model = model_of(lambda g, x: g.fc(x, g.constant("w", weights(2000, 8)), "y"), 1, 8)
    given = feeds(model)
    assert "y" in run(model, given)
    planned = plan(model, limit=0)
    data = bytearray(planned.tables)
    for segment in planned.segments:
        data += bytes(segment.start - len(data))
        payload = segment.payload
        data += payload if isinstance(payload, bytes) else payload.tobytes()
    assert formats.loads(data).graphs[0].initializers["w"].const_value is not None  # we read it
    (result,) = run_all([(bytes(data), given)])
    assert result == CRASHED, MENDED


def test_only_the_first_graph_is_run() -> None:
    """Its sessions have no name or number of a graph to ask for."""
    from onert.native.libnnfw_api_pybind import infer

    assert not [name for name in dir(infer.nnfw_session) if "signature" in name or "subgraph" in name], MENDED
