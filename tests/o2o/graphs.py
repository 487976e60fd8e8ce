"""Little models for the tests of `o2o`, built in the IR; and `run_graph`, which executes one on LiteRT.

    graph = Graph("main")
    x = graph.input("x", [2, 4])
    graph.output(graph.op("ADD", [x, graph.constant("one", np.float32([1]))], [2, 4], name="y"))
    model = graph.model()                    # one graph, one signature of its name
    run(model, {"x": np.zeros((2, 4), np.float32)})["y"]

`SAMPLES` holds one model for each thing a file can have. `float_models` draws random ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers.flexbuffers
import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import (
    BlockwiseQuantizationT,
    DimensionMetadataT,
    Int32VectorT,
    QuantizationParametersT,
    SparsityParametersT,
    Uint8VectorT,
    VariantSubTypeT,
)

from o2o import formats
from o2o.contract import Role
from o2o.formats.tensors import constant
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Format, Model, Signature
from o2o.rewriting.builder import Builder, add_constant
from tests.tolerances import assert_close

FLOAT, INT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL


class Graph:
    """An `ir.Graph` under construction; `.ir` is the graph itself."""

    def __init__(self, name: str) -> None:
        self.ir = ir.Graph([], [], nodes=[], name=name, opset_imports={DOMAIN: 1})

    def input(self, name: str, shape: Sequence[int], dtype: ir.DataType = FLOAT) -> ir.Value:
        value = self.value(name, shape, dtype)
        self.ir.inputs.append(value)
        return value

    def value(self, name: str, shape: Sequence[int], dtype: ir.DataType = FLOAT) -> ir.Value:
        """A value without producer, such as a variable tensor."""
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.ir, np.asarray(array), name)

    def raw_constant(
        self, name: str, data: bytes, shape: Sequence[int], dtype: ir.DataType | None
    ) -> ir.Value:
        """A constant by its bytes, for types that numpy lacks."""
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype) if dtype is not None else None
        )
        value.const_value = constant(np.frombuffer(data, np.uint8), dtype, tuple(shape), name)
        self.ir.register_initializer(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        dtype: ir.DataType | None = None,
        name: str | None = None,
        version: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        value = Builder(self.ir).node(op_type, inputs, shape, dtype, name, **attributes)
        node = value.producer()
        assert node is not None
        node.version = version
        return value

    def fc(self, x: ir.Value, weight: ir.Value, name: str, bias: ir.Value | None = None) -> ir.Value:
        shape = [*x.shape.numpy()[:-1], weight.shape.numpy()[-2]]  # type: ignore[union-attr]
        return self.op("FULLY_CONNECTED", [x, weight, bias], shape, name=name, keepNumDims=1)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        attributes: Sequence[ir.Attr] = (),
        domain: str = DOMAIN,
    ) -> ir.Node:
        """Any node: with several outputs or none, control flow, custom operators."""
        node = ir.Node(domain, op_type, inputs, attributes, outputs=outputs, version=1)
        self.ir.append(node)
        return node

    def output(self, *values: ir.Value) -> None:
        self.ir.outputs.extend(values)

    def model(self, *others: Graph, format: Format = "circle") -> Model:
        """This graph and `others`, with a signature for this one."""
        model = Model(format, [self.ir, *(other.ir for other in others)])
        sign(model, self.ir)
        return model


def sign(model: Model, graph: ir.Graph, name: str | None = None, public: str = "{}") -> Signature:
    """Give `graph` a signature; its public names are built from those of the tensors by `public`."""
    signature = Signature(
        name or graph.name or "main",
        graph,
        {public.format(value.name): value for value in graph.inputs},
        {public.format(value.name): value for value in graph.outputs},
    )
    model.signatures.append(signature)
    return signature


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds(model: Model, graph: ir.Graph | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for `graph` (else the first), by tensor name."""
    generator = np.random.default_rng(seed)
    collected = {}
    for value in (graph or model.graphs[0]).inputs:
        assert value.shape is not None
        assert value.dtype is not None
        numbers = generator.standard_normal(value.shape.numpy())
        integer = np.issubdtype(value.dtype.numpy(), np.integer)
        collected[value.name or ""] = (np.abs(numbers) * 2 if integer else numbers).astype(
            value.dtype.numpy()
        )
    return collected


def exported_feeds(model: Model, position: int) -> dict[str, np.ndarray]:
    """Random inputs for an exported graph at `position`; rows of caches that it must not see hold 1000."""
    generator = np.random.default_rng(position)
    collected = {}
    for value in model.graphs[0].inputs:
        name, shape = value.name or "", value.shape.numpy()  # type: ignore[union-attr]
        if name == "cache_position":
            collected[name] = np.array([position])
        elif name == "input_ids":
            collected[name] = generator.integers(0, 100, shape)
        else:
            collected[name] = generator.standard_normal(shape).astype(np.float32)
            collected[name][:, :, position:] = 1000
    return collected


def operators(model: Model) -> Counter[str]:
    """How many nodes of each operator there are."""
    return Counter(node.op_type for graph in model.graphs for node in graph)


def interpreter(data: bytes) -> Interpreter:
    """LiteRT's interpreter on a Circle or TFLite file, whose operators it must know."""
    model = formats.loads(data)
    model.format = "tflite"
    for graph in model.graphs:
        for node in graph:
            if node.op_type == "BROADCAST_TO":
                node.version = 2  # the first that LiteRT registers
    collected = Interpreter(model_content=formats.dumps(model), num_threads=1)
    collected.allocate_tensors()
    return collected


def run(
    model: Model, feeds: Mapping[str, np.ndarray], graph: ir.Graph | None = None
) -> dict[str, np.ndarray]:
    """The outputs, by tensor name and in order, of `graph` (else the first) as LiteRT computes them."""
    index = 0 if graph is None else model.graphs.index(graph)
    graph = model.graphs[index]
    engine = interpreter(formats.dumps(model))
    if index == 0:
        places = {detail["name"]: detail["index"] for detail in engine.get_input_details()}
        for name, array in feeds.items():
            engine.set_tensor(places[name], array)
        engine.invoke()
        return {
            value.name or "": engine.get_tensor(detail["index"])
            for value, detail in zip(graph.outputs, engine.get_output_details(), strict=True)
        }
    signature = next(model.signatures_of(graph))
    names = {value.name: name for name, value in signature.inputs.items()}
    results = engine.get_signature_runner(signature.name)(**{names[k]: v for k, v in feeds.items()})
    return {value.name or "": results[name] for name, value in signature.outputs.items()}


def assert_means_the_same(before: Model, after: Model) -> None:
    """The same numbers by the reference, and on LiteRT once lowered, which uses `after` up."""
    from o2o.lower.litert import lower_to_litert
    from o2o.operators import reference

    given = feeds(before)
    expected = reference.run_graph(before.graphs[0], given)
    collected = reference.run_graph(after.graphs[0], given)
    lowered = run(lower_to_litert(after), given)
    assert list(collected) == list(lowered) == list(expected)
    for name in expected:
        assert_close(collected[name], expected[name])
        assert_close(lowered[name], expected[name])


def assert_same_results(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    assert list(before) == list(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


# ----------------------------------------------------------------------------------------------------


def linear(format: Format = "circle") -> Model:
    """y = x W' + b, and z = y + 1, of which both are outputs."""
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    y = graph.fc(x, graph.constant("weight", weights(3, 4)), "y", graph.constant("bias", weights(3)))
    z = graph.op("ADD", [y, graph.constant("one", np.ones(1, np.float32))], [2, 3], name="z")
    graph.output(y, z)
    return graph.model(format=format)


def decoder() -> Model:
    """Two signatures over shared weights, as a language model has them: prefill (4 tokens), decode (1)."""
    table, head = weights(16, 8), weights(2000, 8, seed=1)
    graphs = []
    for name, tokens in (("prefill", 4), ("decode", 1)):
        graph = Graph(name)
        ids = graph.input("input_ids", [1, tokens], INT64)
        position = graph.input("cache_position", [1], INT64)
        cache = graph.input("past_key_0", [1, 2, 8, 4])
        ids.meta["role"] = Role("tokens")
        position.meta["role"] = Role("position")
        cache.meta["role"] = Role("key_cache", 0, "BNTH")
        axis = {"axis": 0, "batchDims": 0}
        hidden = graph.op(
            "GATHER", [graph.constant("embed", table), ids], [1, tokens, 8], FLOAT, "hidden", **axis
        )
        offset = graph.op("CAST", [position], [1], FLOAT, "offset", inDataType=4, outDataType=0)
        hidden = graph.op("ADD", [hidden, offset], [1, tokens, 8], name="shifted")
        key = graph.op("MUL", [cache, graph.constant("half", np.float32([0.5]))], [1, 2, 8, 4], name="key_0")
        logits = graph.fc(hidden, graph.constant("head", head), "logits")
        logits.meta["role"] = Role("logits")
        key.meta["role"] = Role("key", 0, "BNTH")
        graph.output(logits, key)
        graphs.append(graph)
    model = Model("circle", [graph.ir for graph in graphs])
    for graph in graphs:
        sign(model, graph.ir)
    return model


def conditional() -> Model:
    """IF: y = x + 1 when c, else x * 2. The branches come in the order else, then, unused."""
    main, unused, other, then = Graph("main"), Graph("unused"), Graph("else"), Graph("then")
    for graph, op, number in ((unused, "SUB", 9.0), (other, "MUL", 2.0), (then, "ADD", 1.0)):
        a = graph.input("a", [3])
        graph.output(graph.op(op, [a, graph.constant("k", np.float32([number]))], [3], name="r"))
    c, x = main.input("c", [1], BOOL), main.input("x", [3])
    y = main.value("y", [3])
    branches = [ir.AttrGraph("thenSubgraphIndex", then.ir), ir.AttrGraph("elseSubgraphIndex", other.ir)]
    main.node("IF", [c, x], [y], branches)
    main.output(y)
    return main.model(unused, other, then)


def loop() -> Model:
    """WHILE i < 5: i, x = i + 1, x * 2."""
    main, cond, body = Graph("main"), Graph("cond"), Graph("body")
    i = cond.input("i", [1], INT32)
    cond.input("x", [2])
    cond.output(cond.op("LESS", [i, cond.constant("five", np.int32([5]))], [1], BOOL, "more"))
    i, x = body.input("i", [1], INT32), body.input("x", [2])
    body.output(
        body.op("ADD", [i, body.constant("one", np.int32([1]))], [1], name="i_next"),
        body.op("MUL", [x, body.constant("two", np.float32([2]))], [2], name="x_next"),
    )
    i, x = main.input("i", [1], INT32), main.input("x", [2])
    last, result = main.value("last", [1], INT32), main.value("result", [2])
    graphs = [ir.AttrGraph("condSubgraphIndex", cond.ir), ir.AttrGraph("bodySubgraphIndex", body.ir)]
    main.node("WHILE", [i, x], [last, result], graphs)
    main.output(last, result)
    return main.model(cond, body)


def call_once() -> Model:
    """A variable that CALL_ONCE sets to 7: y = x + variable. Only side effects keep the initializer."""
    main, init = Graph("main"), Graph("init")
    names = [ir.AttrString("container", ""), ir.AttrString("sharedName", "counter")]
    handle = resource(init, "handle")
    init.node("VAR_HANDLE", [], [handle], names)
    init.node("ASSIGN_VARIABLE", [handle, init.constant("seven", np.float32([7]))], [])
    main.node("CALL_ONCE", [], [], [ir.AttrGraph("initSubgraphIndex", init.ir)])
    x, handle = main.input("x", [1]), resource(main, "handle")
    main.node("VAR_HANDLE", [], [handle], names)
    read = main.op("READ_VARIABLE", [handle], [1], FLOAT, "read")
    main.output(main.op("ADD", [x, read], [1], name="y"))
    return main.model(init)


def resource(graph: Graph, name: str) -> ir.Value:
    """A tensor of type RESOURCE, which the IR has no name for."""
    value = graph.value(name, [])
    value.type = None
    value.meta["fields"] = {"type": 13}
    return value


def composite() -> Model:
    """STABLEHLO_COMPOSITE with attributes in FlexBuffers, over the graph that it stands for."""
    main, inside = Graph("main"), Graph("double.impl")
    a = inside.input("a", [2])
    inside.output(inside.op("ADD", [a, a], [2], name="twice"))
    x, y = main.input("x", [2]), main.value("y", [2])
    attributes = [
        ir.AttrString("name", "my.double"),
        ir.AttrGraph("decompositionSubgraphIndex", inside.ir),
        ir.AttrInt64s("compositeAttributes", list(flatbuffers.flexbuffers.Dumps({"scale": 2}))),
        ir.AttrInt64("compositeAttributesFormat", 0),
        ir.AttrInt64("version", 1),
    ]
    main.node("STABLEHLO_COMPOSITE", [x], [y], attributes)
    main.output(y)
    return main.model(inside)


def quantized() -> Model:
    """int8 weights per channel, dequantized; and a value with per-tensor parameters and a range."""
    graph = Graph("main")
    x = graph.input("x", [2, 4])
    weight = graph.constant("weight", np.arange(12, dtype=np.int8).reshape(3, 4))
    weight.meta["fields"] = {"quantization": per_channel([0.5, 0.25, 0.125])}
    y = graph.fc(x, graph.op("DEQUANTIZE", [weight], [3, 4], FLOAT, "dequantized"), "y")
    q = graph.op("QUANTIZE", [y], [2, 3], ir.DataType.INT8, "q")
    parameters = QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = np.float32([0.5]), np.int64([3])
    parameters.min, parameters.max = np.float32([-1]), np.float32([1])
    q.meta["fields"] = {"quantization": parameters}
    graph.output(q)
    return graph.model()


def per_channel(scales: Sequence[float], axis: int = 0) -> Any:
    parameters = QuantizationParametersT()
    parameters.scale = np.asarray(scales, np.float32)
    parameters.zeroPoint = np.zeros(len(scales), np.int64)
    parameters.quantizedDimension = axis
    return parameters


def blockwise() -> Model:
    """int4 weights in blocks of 32 whose scales are another constant, which no operator touches."""
    graph = Graph("main")
    x = graph.input("x", [1, 64])
    unused = graph.constant("before", weights(2))
    weight = graph.raw_constant("weight", bytes(range(64)), [2, 64], ir.DataType.INT4)
    scales = graph.constant("scales", np.float16([[1, 2], [3, 4]]))
    details = BlockwiseQuantizationT()
    details.blockSize = 32
    parameters = QuantizationParametersT()
    parameters.details, parameters.detailsType = details, 2
    parameters.zeroPoint = np.zeros(1, np.int64)
    weight.meta["fields"] = {"quantization": parameters}
    weight.meta["quantization_constants"] = {"scales": scales}
    graph.output(graph.op("ADD", [graph.fc(x, weight, "y"), unused], [1, 2], name="z"))
    return graph.model(format="tflite")


def stateful() -> Model:
    """A variable tensor: SVDF keeps its state in an operand without producer."""
    graph = Graph("main")
    x = graph.input("x", [1, 3])
    features, times = graph.constant("features", weights(4, 3)), graph.constant("times", weights(4, 5))
    state = graph.value("state", [1, 20])
    state.meta["fields"] = {"isVariable": True}
    y = graph.op("SVDF", [x, features, times, None, state], [1, 4], name="y", rank=1)
    graph.output(y)
    return graph.model()


def sparse() -> Model:
    """Weights of which only two numbers are stored, densified."""
    graph = Graph("main")
    x = graph.input("x", [1, 4])
    weight = graph.raw_constant("weight", np.float32([5, 7]).tobytes(), [3, 4], FLOAT)
    sparsity = SparsityParametersT()
    sparsity.traversalOrder = np.int32([0, 1])
    dense, rows = DimensionMetadataT(), DimensionMetadataT()
    dense.denseSize = 3
    rows.format = 1
    rows.arraySegments, rows.arrayIndices = Uint8VectorT(), Int32VectorT()
    rows.arraySegments.values, rows.arrayIndices.values = np.uint8([0, 1, 1, 2]), np.int32([2, 0])
    rows.arraySegmentsType, rows.arrayIndicesType = 3, 1
    sparsity.dimMetadata = [dense, rows]
    weight.meta["fields"] = {"sparsity": sparsity}
    densified = graph.op("DENSIFY", [weight], [3, 4], FLOAT, "dense")
    graph.output(graph.fc(x, densified, "y"))
    return graph.model()


def custom() -> Model:
    """Two custom operators with different codes and options, one of them with an absent output."""
    graph = Graph("main")
    x = graph.input("x", [2])
    a, b, c = (graph.value(name, [2]) for name in "abc")
    first = graph.node("MyOp", [x, None], [a], domain=CUSTOM_DOMAIN)
    first.meta["fields"] = {"customOptions": np.frombuffer(b"\x01\x02\x03", np.uint8)}
    second = graph.node("YourOp", [a], [b, ir.Value(name=""), c], domain=CUSTOM_DOMAIN)
    second.version = 4
    second.meta["fields"] = {
        "customOptions": np.frombuffer(b"other", np.uint8),
        "mutatingVariableInputs": np.array([True]),
    }
    second.meta["intermediates"] = [graph.value("scratch", [5])]
    graph.output(b, c)
    return graph.model()


def strings() -> Model:
    """A constant of type STRING."""
    graph = Graph("main")
    x = graph.input("x", [1], INT32)
    packed = np.int32([2, 12, 15, 17]).tobytes() + b"abcde"
    words = graph.raw_constant("words", packed, [2], ir.DataType.STRING)
    graph.output(graph.op("GATHER", [words, x], [1], ir.DataType.STRING, "word", axis=0, batchDims=0))
    return graph.model()


def small_types() -> Model:
    """Constants of every element type, those below a byte packed; every one is an output."""
    graph = Graph("main")
    graph.output(graph.op("ABS", [graph.input("x", [1])], [1], name="y"))
    dtypes = [
        *(INT32, INT64, BOOL, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.COMPLEX64),
        *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16),
        *(ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.COMPLEX128),
    ]
    for dtype in dtypes:
        data = bytes([1] * -(-3 * dtype.bitwidth // 8))
        graph.output(graph.raw_constant(str(dtype), data, [3], dtype))
    return graph.model()


def shared_bytes() -> Model:
    """One buffer under two names and two shapes, in two graphs; and unused things all around."""
    array = weights(40, 30)
    first, second = Graph("first"), Graph("second")
    x = first.input("x", [1, 30])
    y = first.fc(x, first.constant("weight", array), "y")
    first.fc(x, first.constant("weight_again", array), "dead")
    first.constant("unused", weights(7, 7))
    first.ir.meta["loose"] = [first.value("loose", [3])]
    first.output(y)
    x = second.input("x", [1, 30])
    flat = second.constant("flat", array.reshape(1, 1, 40, 30))
    second.output(second.op("MUL", [flat, x], [1, 1, 40, 30], name="y"))
    model = first.model(second)
    sign(model, second.ir)
    return model


def odd_names() -> Model:
    """Tensors without a name and with the same name, as files in the wild have them; other metadata."""
    graph = Graph("main")
    x = graph.input("same", [2])
    a = graph.op("ABS", [x], [2], name="a")
    b = graph.op("NEG", [a], [2], name="b")
    c = graph.op("NEG", [b], [2], name="c")
    graph.output(b, c)
    a.meta["name"], b.meta["name"], c.meta["name"] = ("a", "same"), ("b", None), ("c", "")
    graph.ir.meta["fields"] = {"debugMetadataIndex": 1}
    model = graph.model()
    model.metadata = [("min_runtime_version", b"1.5.0" + bytes(11)), ("debug", bytes(range(200)) * 30)]
    model.fields = {"description": "built by hand"}
    sign(model, graph.ir, "other", public="args_{}")
    return model


def variant() -> Model:
    """The rarer fields of a tensor."""
    graph = Graph("main")
    x = graph.input("x", [1, 4])
    x.meta["fields"] = {"shapeSignature": np.int32([-1, 4]), "hasRank": True}
    y = graph.op("ABS", [x], [1, 4], name="y")
    kind = VariantSubTypeT()
    kind.shape, kind.type, kind.hasRank = np.int32([2]), 2, True
    y.meta["fields"] = {"variantTensors": [kind]}
    graph.output(y)
    return graph.model()


SAMPLES: dict[str, Callable[[], Model]] = {
    make.__name__: make
    for make in (
        *(linear, decoder, conditional, loop, call_once, composite, quantized, blockwise, stateful, sparse),
        *(custom, strings, small_types, shared_bytes, odd_names, variant),
    )
}

UNARY = ("ABS", "NEG", "LOGISTIC", "TANH", "RELU")
BINARY = ("ADD", "SUB", "MUL", "MAXIMUM")


@st.composite
def float_models(draw: st.DrawFn) -> Model:
    """A graph of up to a dozen float operators over [m, n] tensors; some of it dead, constants shared."""
    graph = Graph("main")
    dims = st.integers(1, 5)
    rows, columns = draw(dims), draw(dims)
    pool = [graph.input(f"x{k}", [rows, columns]) for k in range(draw(st.integers(1, 3)))]
    arrays: dict[tuple[int, ...], np.ndarray] = {}

    def constant_of(shape: tuple[int, ...]) -> ir.Value:
        """The same bytes for the same shape, now and then."""
        if shape not in arrays or draw(st.booleans()):
            arrays[shape] = weights(*shape, seed=draw(st.integers(0, 9)))
        return graph.constant("c", arrays[shape])

    for _ in range(draw(st.integers(1, 12))):
        x = draw(st.sampled_from(pool))
        assert x.shape is not None
        height, width = x.shape.numpy()
        kind = draw(st.sampled_from(["unary", "binary", "fc", "transpose", "reshape", "constant"]))
        if kind == "unary":
            y = graph.op(draw(st.sampled_from(UNARY)), [x], [height, width])
        elif kind == "binary":
            other = draw(st.sampled_from([v for v in pool if v.shape == x.shape]))
            y = graph.op(draw(st.sampled_from(BINARY)), [x, other], [height, width])
        elif kind == "constant":
            y = graph.op("ADD", [constant_of((width,)), x], [height, width])
        elif kind == "fc":
            units = draw(dims)
            bias = constant_of((units,)) if draw(st.booleans()) else None
            y = graph.fc(x, constant_of((units, width)), "fc", bias)
        elif kind == "transpose":
            y = Builder(graph.ir).transpose(x, [1, 0])
        else:
            y = Builder(graph.ir).reshape(x, [width, height])
        if y not in pool:
            pool.append(y)
    built = [value for value in pool if value.producer() is not None]
    if not built:
        built = [graph.op("ABS", [pool[0]], [rows, columns])]
    graph.output(*draw(st.lists(st.sampled_from(built), min_size=1, max_size=3, unique=True)))
    return graph.model(format=draw(st.sampled_from(["circle", "tflite"])))
