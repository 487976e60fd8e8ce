"""Files are written header first, stream their constants, and are good for other tools."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.formats import write, writer
from o2o.formats.tensors import LARGE
from o2o.formats.writer import plan
from o2o.model import Model
from tests.o2o.formats.trees import canonical, unpack
from tests.o2o.graphs import (
    SAMPLES,
    Graph,
    assert_same_results,
    decoder,
    feeds,
    linear,
    loop,
    per_channel,
    run,
    shared_bytes,
    weights,
)
from tests.tolerances import assert_close

RUNNABLE = sorted(SAMPLES.keys() - {"custom", "variant"})  # no such operators, or types, in LiteRT


def written(model: Model, limit: int) -> bytes:
    sink = io.BytesIO()
    size = write(model, sink, limit)
    assert size == len(sink.getvalue())
    return sink.getvalue()


@pytest.mark.parametrize("name", RUNNABLE)
def test_litert_takes_what_we_write(name: str) -> None:
    model = SAMPLES[name]()
    run(model, feeds(model))


def test_control_flow_runs() -> None:
    given = {"i": np.int32([1]), "x": np.float32([1, 2])}
    results = run(loop(), given)
    np.testing.assert_array_equal(results["last"], [5])
    np.testing.assert_array_equal(results["result"], [16, 32])


def test_the_header_comes_first_and_constants_by_size() -> None:
    data = formats.dumps(decoder())
    planned = plan(formats.loads(data))
    header, segments = planned.tables, planned.segments
    assert data.startswith(header)
    starts = [segment.start for segment in segments]
    assert starts == sorted(starts)
    assert starts[0] >= len(header)
    sizes = [len(bytes(p)) if isinstance(p := s.payload, bytes) else p.nbytes for s in segments]
    large = [size >= LARGE for size in sizes]
    assert large == sorted(large), "large ones last"
    assert len(header) + sum(sizes[: large.index(True)]) < 8192, "so the graph can be read without them"


@pytest.mark.parametrize("limit", [1 << 31, 10_000])
def test_constants_are_aligned(limit: int) -> None:
    data = written(decoder(), limit)
    base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    seen = 0
    for table in unpack(data).buffers:
        if table.offset > 1:
            assert table.offset % 64 == 0
            seen += 1
        elif table.data is not None and len(table.data):
            start = table.data.__array_interface__["data"][0] - base
            assert start % (64 if len(table.data) >= LARGE else 16) == 0
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("make", [decoder, shared_bytes])
def test_beyond_the_limit_constants_go_by_offset(make: type[Model], tmp_path: Path) -> None:
    model = make()
    inside, outside = written(model, 1 << 31), written(model, 5000)
    tables = unpack(outside).buffers
    assert any(table.offset > 1 for table in tables)
    assert canonical(outside) == canonical(inside)
    again = formats.loads(outside)
    assert written(again, 5000) == outside
    assert formats.dumps(again) == inside, "and they come back inside when there is room"
    given = feeds(model)
    assert_same_results(run(model, given), run(again, given))


def test_litert_takes_constants_by_offset() -> None:
    model = linear()
    model.graphs[0].initializers["weight"].const_value = ir.Tensor(
        np.tile(weights(3, 4), (600, 1)), name="weight"
    )
    graph = Graph("main")
    x = graph.input("x", [1, 64])
    graph.output(graph.fc(x, graph.constant("weight", weights(64, 64)), "y"))
    model = graph.model(format="tflite")
    data = written(model, 4096)
    assert any(table.offset > 1 for table in unpack(data).buffers)
    from ai_edge_litert.interpreter import Interpreter

    engine = Interpreter(model_content=data)
    engine.allocate_tensors()
    given = feeds(model)
    engine.set_tensor(engine.get_input_details()[0]["index"], given["x"])
    engine.invoke()
    result = engine.get_tensor(engine.get_output_details()[0]["index"])
    assert_close(result, given["x"] @ weights(64, 64).T)


def test_a_file_of_more_than_2_gib() -> None:
    """Its plan, that is: nobody makes the numbers."""
    graph = Graph("main")
    for name, rows in (("huge", 3 << 20), ("next", 1 << 19)):
        shape = ir.Shape([rows, 1024])
        tensor = ir.LazyTensor(lambda: pytest.fail("made"), ir.DataType.FLOAT, shape, name=name)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        graph.ir.register_initializer(value)
        graph.output(value)
    small = graph.constant("small", np.float32([1, 2]))
    graph.output(small)
    planned = plan(graph.model())
    header, segments = planned.tables, planned.segments
    offsets = [segment.start for segment in segments][-2:]
    assert offsets[1] == offsets[0] + (12 << 30)
    tables = unpack(header.ljust(offsets[0], b"\0")).buffers
    sizes = [(table.offset, table.size) for table in tables if table.offset > 1]
    assert sizes == [(offsets[0], 12 << 30), (offsets[1], 2 << 30)]
    assert len(header) < 4096


@pytest.mark.parametrize("make", [decoder, linear])
def test_what_offsets_cannot_reach_is_refused(make: Callable[[], Model], monkeypatch) -> None:
    """Tables and small constants have no other form, with large constants beside them or without."""
    monkeypatch.setattr(writer, "FLATBUFFER_LIMIT", 200)
    sink = io.BytesIO()
    with pytest.raises(ModelError, match="the graph and its small constants exceed 2 GiB"):
        write(make(), sink, limit=200)
    assert sink.getvalue() == b""


def test_the_same_bytes_every_time() -> None:
    for make in SAMPLES.values():
        assert formats.dumps(make()) == formats.dumps(make())


def with_weight(tensor: ir.TensorProtocol) -> Model:
    graph = Graph("main")
    x = graph.input("x", [1, 5])
    value = ir.Value(
        name="weight", shape=ir.Shape([3, 5]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
    )
    graph.ir.register_initializer(value)
    graph.output(graph.fc(x, value, "y"))
    return graph.model()


def test_constants_from_anywhere(tmp_path: Path) -> None:
    """Transposed views, files, and tensors that are made when they are needed."""
    array = weights(3, 5)
    (tmp_path / "weights.bin").write_bytes(bytes(100) + array.tobytes() + bytes(7))
    tensors = [
        ir.Tensor(array, name="weight"),
        ir.Tensor(np.ascontiguousarray(array.T).T, name="weight"),
        ir.ExternalTensor(
            "weights.bin",
            100,
            60,
            ir.DataType.FLOAT,
            shape=ir.Shape([3, 5]),
            name="weight",
            base_dir=tmp_path,
        ),
        ir.LazyTensor(lambda: ir.Tensor(array), ir.DataType.FLOAT, ir.Shape([3, 5]), name="weight"),
    ]
    files = {formats.dumps(with_weight(tensor)) for tensor in tensors}
    assert len(files) == 1


def test_a_matrix_and_its_transpose_are_two_constants() -> None:
    square = weights(4, 4)
    graph = Graph("main")
    x = graph.input("x", [1, 4])
    for index, array in enumerate((square, square.T)):
        tensor = ir.Tensor(array, name=f"w{index}")
        value = ir.Value(
            name=f"w{index}",
            shape=ir.Shape([4, 4]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=tensor,
        )
        graph.ir.register_initializer(value)
        graph.output(graph.fc(x, value, f"y{index}"))
    model = graph.model()
    given = feeds(model)
    results = run(model, given)
    assert_close(results["y0"], given["x"] @ square.T)
    assert_close(results["y1"], given["x"] @ square)


def test_a_new_shape_goes_before_an_absent_one() -> None:
    graph = Graph("main")
    x = graph.input("x", [])
    x.meta["fields"] = {"shape": None}
    graph.output(graph.op("ABS", [x], [2], name="y"))
    assert unpack(formats.dumps(graph.model())).subgraphs[0].tensors[0].shape is None
    x.shape = ir.Shape([2])
    assert list(unpack(formats.dumps(graph.model())).subgraphs[0].tensors[0].shape) == [2]


# ----------------------------------------------------------------------------------------------------


def unwritable(model: Model) -> str:
    """Why `model` cannot be written, which is known before the first byte."""
    sink = io.BytesIO()
    with pytest.raises(ModelError) as caught:
        write(model, sink)
    assert not sink.getvalue()
    return str(caught.value)


def test_an_operator_that_the_format_lacks() -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    graph.output(graph.op("RMS_NORM", [x, graph.constant("w", weights(4))], [2, 4], name="y", epsilon=0.1))
    model = graph.model()
    formats.dumps(model)
    model.format = "tflite"
    assert unwritable(model) == "tflite has no operator RMS_NORM"


def test_a_type_that_the_format_lacks() -> None:
    graph = Graph("main")
    graph.output(graph.op("ABS", [graph.input("x", [1], ir.DataType.FLOAT8E5M2)], [1], name="y"))
    model = graph.model(format="tflite")
    formats.dumps(model)
    model.format = "circle"
    assert unwritable(model) == "x: circle has no tensor type FLOAT8E5M2"
    graph = Graph("main")
    x = graph.input("x", [1])
    x.type = None
    x.meta["fields"] = {"type": -2}  # GGML_Q4_0
    graph.output(graph.op("ABS", [x], [1], ir.DataType.FLOAT, "y"))
    model = graph.model()
    formats.dumps(model)
    model.format = "tflite"
    assert unwritable(model) == "x: tflite has no tensor type -2"


def test_a_field_that_the_format_lacks() -> None:
    model = SAMPLES["blockwise"]()
    quantization = model.graphs[0].initializers["weight"].meta["fields"]["quantization"]
    quantization.details.blockShape = np.int32([1, 32])
    formats.dumps(model)
    model.format = "circle"
    assert unwritable(model) == "circle has no field BlockwiseQuantization.blockShape, which this model uses"


def test_an_unknown_option() -> None:
    model = linear()
    node = model.graphs[0][0]
    node.attributes["colour"] = ir.AttrInt64("colour", 3)
    assert unwritable(model) == "FULLY_CONNECTED: circle has no option colour in FullyConnectedOptions"


def test_a_result_of_nobody() -> None:
    model = linear()
    graph = model.graphs[0]
    graph.remove(graph[0])
    assert unwritable(model) == "y is used, but its producer FULLY_CONNECTED is not in the graph"


def test_equal_vectors_in_the_tables_are_one() -> None:
    """The graph of each signature has the same weights, and so the same scales and zero points."""

    def model(scales: list[np.ndarray]) -> Model:
        graph = Graph("main")
        x = graph.input("x", [1, 4])
        for index, scale in enumerate(scales):
            w = graph.constant(f"w{index}", np.full((1000, 4), index, np.int8))
            w.meta["fields"] = {"quantization": per_channel(scale)}
            graph.output(graph.fc(x, w, f"y{index}"))
        return graph.model()

    one = np.linspace(1, 2, 1000, dtype=np.float32)
    same, other = (formats.dumps(model([one, scale])) for scale in (one, one + 1))
    single = formats.dumps(model([one]))
    assert len(same) < len(single) + 4000 + 1000  # the weights, no scale, no zero point
    assert len(same) + 4000 <= len(other) < len(same) + 5000
    assert formats.dumps(formats.loads(same)) == same
    for data, scale in ((same, one), (other, one + 1)):
        value = formats.loads(data).graphs[0].initializers["w1"]
        np.testing.assert_array_equal(value.meta["fields"]["quantization"].scale, scale)
