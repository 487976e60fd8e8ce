"""ONNX models by hand: branches, functions, sparse tensors, metadata, symbolic dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGE = 4096  # elements of a weight that the reader leaves in its file


def branches() -> onnx.ModelProto:
    """If and Loop whose graphs use outer values, and an initializer of their own."""
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1], producer_name: "by hand", doc_string: "a doc">
    g (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] z)
    <float[4] w = {1, 2, 3, 4}, float[4] unused = {0, 0, 0, 0}, int64 three = {3}, bool yes = {1}>
    {
        dead = Neg (x)
        h = Mul (x, w)
        y = If (c) <
            then_branch = then () => (float[N, 4] t) <float[4] inner = {5, 6, 7, 8}> {
                idle = Abs (h)
                t = Add (h, inner)
            },
            else_branch = otherwise () => (float[N, 4] e) { e = Sub (h, x) }
        >
        z = Loop (three, yes, x) <
            body = body (int64 i, bool go, float[N, 4] a) => (bool go_out, float[N, 4] b) {
                go_out = Identity (go)
                s = local.twice (h)
                b = Add (a, s)
            }
        >
    }
    <domain: "local", opset_import: ["" : 21], overload: "">
    twice (p) => (q) { q = Add (p, p) }
    <domain: "local", opset_import: ["" : 21]>
    never (p) => (q) { q = Neg (p) }
    """
    return onnx.parser.parse_model(text)


def everything() -> onnx.ModelProto:
    """What `onnx_ir` alone would lose, change or refuse."""
    proto = branches()
    graph = proto.graph
    values = numpy_helper.from_array(np.array([2.5, 7.0], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1, 3], np.int64), "sparse_indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6]))
    graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", "ö".encode()]))
    packed = helper.make_tensor("int4", TensorProto.INT4, [3], [1, -2, 7])
    packed.metadata_props.add(key="of", value="tensor")
    graph.initializer.append(packed)
    graph.initializer.append(numpy_helper.from_array(np.arange(LARGE, dtype=np.float32), "large"))
    sparse = helper.make_node("Constant", [], ["constant"])
    sparse.attribute.append(helper.make_attribute("sparse_value", graph.sparse_initializer[0]))
    graph.node.append(sparse)
    custom = helper.make_node("Opaque", ["x", ""], ["o", "", ""], domain="custom", overload="f32")
    custom.attribute.append(helper.make_attribute("bytes", [b"\xff\xfe", b"text"]))
    custom.attribute.append(helper.make_attribute("data", numpy_helper.from_array(np.ones(LARGE))))
    custom.metadata_props.add(key="pkg", value="exporter")
    graph.node.append(custom)
    graph.node.append(helper.make_node("Map", ["x"], ["m"], domain="custom"))
    float_type = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    map_type = onnx.TypeProto()
    map_type.map_type.key_type = TensorProto.INT64
    map_type.map_type.value_type.CopyFrom(float_type)
    graph.value_info.append(helper.make_value_info("m", map_type))
    graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, None))
    graph.output[-1].metadata_props.add(key="of", value="value")
    graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    graph.metadata_props.add(key="of", value="graph")
    proto.metadata_props.add(key="author", value="somebody")
    proto.opset_import.append(helper.make_opsetid("custom", 3))
    proto.training_info.add().algorithm.name = "step"
    return proto


def chain(large: bool = False) -> onnx.ModelProto:
    """x [B, T, 8] - MatMul - Add - Reshape - y, with symbolic dimensions and an input that has a default."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[B, T, 8] x, float[8] bias) => (float[B, T, 2, 4] y, int64[3] length)
    <int64[4] split = {0, 0, 2, 4}>
    {
        length = Shape (x)
        h = MatMul (x, w)
        a = Add (h, bias)
        y = Reshape (a, split)
    }
    """
    proto = onnx.parser.parse_model(text)
    rows = LARGE if large else 8
    generator = np.random.default_rng(0)
    w = generator.standard_normal((rows, 8)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "bias"))
    if large:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = rows
    return proto


def stacked() -> onnx.ModelProto:
    """A constant of four axes in two products: the result of one has four axes because of it."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 1, 3, 4] x, float[3, 4] y) => (float[2, 1, 3, 5] a, float[1, 1, 3, 5] b) {
            a = MatMul (x, w)
            b = MatMul (y, w)
        }""")
    weight = np.random.default_rng(0).standard_normal((1, 1, 4, 5)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def data_of(proto: onnx.ModelProto) -> bytes:
    """The file of a model, as `onnx_ir` writes strings that may be empty or absent."""
    _drop_empty_strings(proto)
    return proto.SerializeToString(deterministic=True)


def _drop_empty_strings(message: Any) -> None:
    if isinstance(message, onnx.OperatorSetIdProto):
        message.domain = str(message.domain)
        return
    for field, item in message.ListFields():
        if field.name in ("domain", "overload", "doc_string", "name") and item == "":
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for each in [item] if hasattr(item, "ListFields") else item:
                _drop_empty_strings(each)


def decoder(static: bool = False) -> onnx.ModelProto:
    """One layer with caches that grow, named as transformers names them; dimensions are symbolic.

    Args:
        static: One token after 4 others, with numbers for the dimensions.
    """
    sizes = {"B": "1", "T": "1", "P": "4", "S": "5"} if static else {}
    B, T, P, S = (sizes.get(name, name) for name in "BTPS")
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[{B}, {T}] input_ids, int64[{B}, {S}] attention_mask, int64[{B}, {T}] position_ids,
       float[{B}, 2, {P}, 4] past_key_values_0_key, float[{B}, 2, {P}, 4] past_key_values_0_value)
      => (float[{B}, {T}, 16] logits,
          float[{B}, 2, {S}, 4] present_0_key, float[{B}, 2, {S}, 4] present_0_value)
    <int64[4] heads = {{0, 0, 2, 4}}, int64[3] flat = {{0, 0, 8}}, float scale = {{0.5}},
     float low = {{-10000}}, float one = {{1}}, int64[2] inner = {{1, 2}}>
    {{
        e = Gather (embedding, input_ids)
        at = Gather (positions, position_ids)
        h = Add (e, at)
        q2 = MatMul (h, wq)
        q3 = Reshape (q2, heads)
        q = Transpose <perm = [0, 2, 1, 3]> (q3)
        k2 = MatMul (h, wk)
        k3 = Reshape (k2, heads)
        k = Transpose <perm = [0, 2, 1, 3]> (k3)
        v2 = MatMul (h, wv)
        v3 = Reshape (v2, heads)
        v = Transpose <perm = [0, 2, 1, 3]> (v3)
        present_0_key = Concat <axis = 2> (past_key_values_0_key, k)
        present_0_value = Concat <axis = -2> (past_key_values_0_value, v)
        kt = Transpose <perm = [0, 1, 3, 2]> (present_0_key)
        scores = MatMul (q, kt)
        scaled = Mul (scores, scale)
        seen = Cast <to = 1> (attention_mask)
        hidden = Sub (one, seen)
        bias2 = Mul (hidden, low)
        bias = Unsqueeze (bias2, inner)
        masked = Add (scaled, bias)
        weights = Softmax <axis = -1> (masked)
        mixed = MatMul (weights, present_0_value)
        back = Transpose <perm = [0, 2, 1, 3]> (mixed)
        all = Reshape (back, flat)
        added = Add (h, all)
        logits = MatMul (added, head)
    }}
    """
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    shapes = {
        "embedding": (16, 8),
        "positions": (64, 8),
        "wq": (8, 8),
        "wk": (8, 8),
        "wv": (8, 8),
        "head": (8, 16),
    }
    for name, shape in shapes.items():
        numbers = generator.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(numbers, name))
    for letter in ("key", "value"):  # the parser takes no dots in names
        for old, new in (("past_key_values_0_", "past_key_values.0."), ("present_0_", "present.0.")):
            renamed(proto, f"{old}{letter}", f"{new}{letter}")
    return proto


def renamed(proto: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Give an input, output or tensor of the main graph another name, in place."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new if value.name == old else value.name
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return proto


def static_decoder(first_hidden: int = 1) -> onnx.ModelProto:
    """A decoder of one layer, as the older exporter of torch.onnx writes it, with static caches [1,1,8,4].

    Key row r is hidden from the token at position p if r >= p + `first_hidden`. Weights that are no numbers
    become 0.
    """
    text = f"""
    <ir_version: 11, opset_import: ["" : 24]>
    decode (int64[1,1] input_ids, int64[1] position, float[1,1,8,4] past_key_0, float[1,1,8,4] past_value_0)
        => (float[1,1,16] logits, float[1,1,8,4] present_key_0, float[1,1,8,4] present_value_0)
    <float two = {{2}}, float one = {{1}}, float epsilon = {{0.00001}}, float zero = {{0}},
     float scale = {{0.5}},
     int64[4] heads = {{1, 1, 2, 4}}, int64[4] head = {{1, 1, 1, 4}}, int64[3] joined = {{1, 1, 8}},
     int64[5] wide = {{1, 1, 2, 8, 4}}, int64[4] repeated = {{1, 2, 8, 4}},
     int64[1] at2 = {{2}}, int64[1] start = {{0}}, int64[1] half = {{2}}, int64[1] stop = {{9}},
     int64[1] last = {{-1}},
     int64[8] rows = {{0, 1, 2, 3, 4, 5, 6, 7}}, int64 first = {{{first_hidden}}},
     float[1] shown = {{0}}, int64[4] row = {{1, 1, 1, 8}}>
    {{
        x = Gather (table, input_ids)
        square = Pow (x, two) mean = ReduceMean (square, last)
        sum = Add (mean, epsilon) root = Sqrt (sum) inverse = Div (one, root)
        scaled = Mul (x, inverse) n = Mul (norm, scaled)
        q0 = MatMul (n, wq) q1 = Reshape (q0, heads) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
        k0 = MatMul (n, wk) k1 = Reshape (k0, head) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
        v0 = MatMul (n, wv) v1 = Reshape (v0, head) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        cos0 = Gather (cosines, position) cos = Unsqueeze (cos0, start)
        sin0 = Gather (sines, position) sin = Unsqueeze (sin0, start)
        q3 = Mul (q2, cos) qa = Slice (q2, start, half, last) qb = Slice (q2, half, stop, last)
        qn = Neg (qb) q4 = Concat <axis = -1> (qn, qa) q5 = Mul (q4, sin) q = Add (q3, q5)
        k3 = Mul (k2, cos) ka = Slice (k2, start, half, last) kb = Slice (k2, half, stop, last)
        kn = Neg (kb) k4 = Concat <axis = -1> (kn, ka) k5 = Mul (k4, sin) k = Add (k3, k5)
        present_key_0 = TensorScatter (past_key_0, k, position)
        present_value_0 = TensorScatter (past_value_0, v2, position)
        key0 = Unsqueeze (present_key_0, at2) key1 = Expand (key0, wide)
        key = Reshape (key1, repeated)
        value0 = Unsqueeze (present_value_0, at2) value1 = Expand (value0, wide)
        value = Reshape (value1, repeated)
        limit = Add (position, first) seen = Less (rows, limit) m = Where (seen, shown, hidden)
        mask = Reshape (m, row)
        kt = Transpose <perm = [0, 1, 3, 2]> (key) s0 = MatMul (q, kt) s1 = Mul (s0, scale)
        s = Add (s1, mask) p0 = Softmax <axis = -1> (s) bad = IsNaN (p0) p = Where (bad, zero, p0)
        y0 = MatMul (p, value) y1 = Transpose <perm = [0, 2, 1, 3]> (y0) y2 = Reshape (y1, joined)
        y3 = MatMul (y2, wo) y = Add (x, y3)
        head_weight = Transpose <perm = [1, 0]> (table) logits = MatMul (y, head_weight)
    }}
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    angles = np.arange(8)[:, None] * np.tile([1.0, 0.1], 2)
    weights = {
        "table": random.standard_normal((16, 8)),
        "norm": random.random(8) + 0.5,
        **{
            name: random.standard_normal((8, n)) / 3
            for name, n in (("wq", 8), ("wk", 4), ("wv", 4), ("wo", 8))
        },
        "cosines": np.cos(angles)[:, None],
        "sines": np.sin(angles)[:, None],
        "hidden": np.full(1, -np.inf),
    }
    for name, numbers in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32), name))
    return proto
