"""Seeded defects: one step of a filter is broken, and `--check` refuses the result and names what is wrong.

Each defect patches a function that the filter calls. The filter without the defect passes `--check`.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from flatbuffers import flexbuffers
from safetensors.numpy import save_file

from o2o import filters, formats
from o2o.contract import Role, role_of
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from o2o.rewriting.builder import Builder, add_constant
from tests.o2o import attention_graphs, fused_graphs, graphs
from tests.o2o.filters import (
    test_fuse_bmm_lhs_const,
    test_fuse_fc,
    test_fuse_rms_norm,
    test_fuse_rope,
    test_reshape_fc_weight,
    test_wrap_composites,
)
from tests.o2o.graphs import Graph, weights
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.onnx.decoders import Shape, decoder
from tests.o2o.window_graphs import window_model

Patch = Callable[[pytest.MonkeyPatch], None]
Wrapper = Callable[..., Any]


def around(place: str, wrapper: Wrapper) -> Patch:
    """Replace a function, `module:name` or `module:Class.name`; `wrapper` gets the original first."""
    module, _, name = place.partition(":")

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        owner: Any = importlib.import_module(f"o2o.{module}")
        *classes, function = name.split(".")
        for attribute in classes:
            owner = getattr(owner, attribute)
        original = getattr(owner, function)
        monkeypatch.setattr(owner, function, lambda *given, **more: wrapper(original, *given, **more))

    return patch


def after(place: str, damage: Callable[..., None]) -> Patch:
    """Call `damage(result, *arguments)` when a function has returned."""

    def wrapper(original: Wrapper, *arguments: Any, **more: Any) -> Any:
        result = original(*arguments, **more)
        damage(result, *arguments)
        return result

    return around(place, wrapper)


def before(place: str, damage: Callable[..., None]) -> Patch:
    """Call `damage(*arguments)` in front of a function."""

    def wrapper(original: Wrapper, *arguments: Any, **more: Any) -> Any:
        damage(*arguments)
        return original(*arguments, **more)

    return around(place, wrapper)


def value(place: str, new: Any) -> Patch:
    """Replace a constant of a module."""
    module, _, name = place.partition(":")
    return lambda monkeypatch: monkeypatch.setattr(importlib.import_module(f"o2o.{module}"), name, new)


def nodes(model: Model, *op_types: str) -> list[ir.Node]:
    return [node for graph in model.graphs for node in graph if node.op_type in op_types]


# ---- models ----------------------------------------------------------------------------------------


def attention_block(**form: Any) -> Model:
    return attention_graphs.build(attention_graphs.Form(**form))


def fused_attention(**form: Any) -> Model:
    model = fused_graphs.attention(fused_graphs.Form(**form))
    for value_ in model.graphs[0].inputs:
        if value_.name == "pos":
            value_.meta["role"] = Role("position")
    return model


def rope(decomposed: bool = True) -> Model:
    model = test_fuse_rope.build(test_fuse_rope.Form(shape=(1, 3, 5, 4)))
    return model if decomposed else fused("fuse_rope", model)


def rms_norm(decomposed: bool = True) -> Model:
    model = test_fuse_rms_norm.build(test_fuse_rms_norm.Form())
    return model if decomposed else fused("fuse_rms_norm", model)


def fused(module: str, model: Model) -> Model:
    filter_ = filters.load(module)()
    filter_.apply(model, filter_.parser().parse_args([]))
    return formats.loads(formats.dumps(model))


def lowered_language_model() -> Model:
    return formats.loads(formats.dumps(lower_to_litert(language_model())))


def two_prefills() -> Model:
    return formats.loads(formats.dumps(lower_to_litert(language_model((2, 4, 1), ("p2", "p4", "decode")))))


def quantized_attention() -> Model:
    model = fused_graphs.attention(fused_graphs.Form(H=32, layout="BNTH"))
    model.graphs[0].inputs[-1].meta["role"] = Role("position")
    quantize(model, find_recipe("dynamic_int8"))
    return formats.loads(formats.dumps(model))


def embedding() -> Model:
    """Rows of a table, and a product with it: an embedding, and more rows than a run looks up."""
    graph = Graph("main")
    ids, x = graph.input("ids", [1, 2], graphs.INT32), graph.input("x", [1, 64])
    ids.meta["role"] = Role("tokens")
    table, head = graph.constant("table", weights(200, 64)), graph.constant("head", weights(96, 64, seed=1))
    graph.output(graph.op("GATHER", [table, ids], [1, 2, 64], name="rows", axis=0, batchDims=0))
    graph.output(graph.fc(x, head, "y"))
    return graph.model()


def two_inputs() -> Model:
    """a - b, and their quotient."""
    graph = Graph("main")
    a, b = graph.input("a", [2, 3]), graph.input("b", [2, 3])
    one = graph.constant("one", np.float32([1]))
    positive = graph.op("ADD", [graph.op("ABS", [b], [2, 3]), one], [2, 3], name="positive")
    graph.output(graph.op("SUB", [a, b], [2, 3], name="difference"))
    graph.output(graph.op("DIV", [a, positive], [2, 3], name="quotient"))
    graph.output(graph.op("MUL", [positive, b], [2, 3], name="product"))
    return graph.model()


def casts() -> Model:
    """Ids that are looked up, added and cast."""
    graph = Graph("main")
    ids = graph.input("input_ids", [1, 3], graphs.INT64)
    table = graph.constant("table", weights(9, 4))
    graph.output(graph.op("GATHER", [table, ids], [1, 3, 4], graphs.FLOAT, "rows", axis=0, batchDims=0))
    graph.output(graph.op("CAST", [ids], [1, 3], graphs.FLOAT, "numbers", inDataType=4, outDataType=0))
    steps = graph.constant("steps", np.arange(3))
    graph.output(graph.op("ADD", [ids, steps], [1, 3], graphs.INT64, "sums"))
    return graph.model()


def half_precision(tmp_path: Path) -> Model:
    """A weight that is bfloat16 in a checkpoint, and another of the same shape."""
    import ml_dtypes

    numbers = weights(64, 48)
    path = tmp_path / "model.safetensors"
    save_file(
        {"w": numbers.astype(ml_dtypes.bfloat16).astype(np.float32), "other": numbers[::-1].copy()}, path
    )
    graph = Graph("main")
    y = graph.input("x", [2, 48])
    for name, rows in (("w", 64),):
        w = graph.constant(name, weights(rows, 48))
        w.const_value = UnboundTensor(name, path, name, ir.DataType.FLOAT, (rows, 48))
        y = graph.fc(y, w, "y")
    graph.output(y)
    return graph.model()


def bucketed() -> Model:
    model = fused_graphs.attention(fused_graphs.Form(S=16, layout="BNTH"))
    model.graphs[0].inputs[-1].meta["role"] = Role("position")
    return formats.loads(formats.dumps(lower_to_litert(model)))


# ---- damage ----------------------------------------------------------------------------------------


def swap_operands(node: ir.Node, first: int, second: int) -> None:
    a, b = node.inputs[first], node.inputs[second]
    node.replace_input_with(first, b)
    node.replace_input_with(second, a)


def swap_fields(name: str, other: str) -> Callable[..., None]:
    """Of the attention that was matched."""

    def damage(rule: Any, model: Model, graph: ir.Graph, match: Any) -> None:
        of = match.attention
        a, b = getattr(of, name), getattr(of, other)
        setattr(of, name, b)
        setattr(of, other, a)

    return damage


def no_mask(rule: Any, model: Model, graph: ir.Graph, match: Any) -> None:
    match.attention.mask = None


def next_position(rule: Any, model: Model, graph: ir.Graph, match: Any) -> None:
    position = match.attention.pos
    op = Builder(graph, before=graph[0])
    one = op.constant([1], "next", position.dtype.numpy())
    match.attention.pos = op.node("ADD", [position, one], shape_of(position), position.dtype)


def drop_last_output(result: Any, model: Model, *_: Any) -> None:
    signature = model.signatures[-1]
    _, last = signature.outputs.popitem()
    signature.graph.outputs.remove(last)


def drop_signature(result: Any, model: Model, *_: Any) -> None:
    model.signatures.pop(0)


def share_by_shape(result: Any, model: Model, *_: Any) -> None:
    """Constants of the same shape and dtype become one."""
    first: dict[Any, ir.TensorProtocol] = {}
    for graph in model.graphs:
        for constant in graph.initializers.values():
            assert constant.const_value is not None
            key = constant.dtype, shape_of(constant)
            constant.const_value = first.setdefault(key, constant.const_value)


def zero_constant(result: Any, model: Model, *_: Any) -> None:
    constant = next(v for v in model.graphs[0].initializers.values() if v.dtype == graphs.FLOAT)
    constant.const_value = ir.Tensor(np.zeros(shape_of(constant), np.float32), name=constant.name)


@dataclass(frozen=True)
class Defect:
    """A filter with one broken step.

    Attributes:
        module: The filter.
        arguments: Of its command.
        model: Makes its input.
        patch: Breaks the step.
        named: A pattern of what the refusal must name.
    """

    module: str
    arguments: Sequence[str]
    model: Callable[..., Model]
    patch: Patch
    named: str


def ones_for_weight(model: Model) -> None:
    for node in nodes(model, "RMS_NORM"):
        assert node.graph is not None
        ones = np.ones(shape_of(node.inputs[1]), np.float32)  # type: ignore[arg-type]
        node.replace_input_with(1, add_constant(node.graph, ones, "ones"))


def tflite_norm() -> Model:
    return test_wrap_composites.attention()


def exchange_branches(model: Model) -> None:
    (node,) = nodes(model, "IF")
    then, other = (node.attributes[f"{name}SubgraphIndex"].value for name in ("then", "else"))
    node.attributes["thenSubgraphIndex"] = ir.AttrGraph("thenSubgraphIndex", other)
    node.attributes["elseSubgraphIndex"] = ir.AttrGraph("elseSubgraphIndex", then)


def scale_constants(model: Model) -> None:
    """The scale of the attention that a composite stands for."""
    for graph in model.graphs[1:]:
        for constant in graph.initializers.values():
            if constant.dtype == graphs.FLOAT and not shape_of(constant):
                number = constant.const_value.numpy() * np.float32(1.1)  # type: ignore[union-attr]
                constant.const_value = ir.Tensor(number, name=constant.name)


def swap_composite_operands(model: Model) -> None:
    for node in nodes(model, "STABLEHLO_COMPOSITE"):
        if len(node.inputs) > 2:
            swap_operands(node, 1, 2)


CACHED = functools.partial(attention_block, join="slice", layout="BNTH", returns_caches=True)
CONCATENATED = functools.partial(attention_block, join="concat", past=6)
MASKED = functools.partial(attention_block, mask="input", T=3)
DECODE = functools.partial(fused_attention, layout="BNTH", G=2)
PREFILL = functools.partial(fused_attention, layout="BNTH", G=2, T=3)
RULE = "rewriting.attention.rule:AttentionRule.rewrite"
SDPA = "lower.litert.attention:scaled_dot_product_attention"
ONERT = "lower.onert.attention:"


def swapped_tables(rotation: Any) -> Any:
    """The result of `rotation_of` with cos and sin exchanged."""
    if rotation is None:
        return None
    x, tables = rotation
    return x, replace(tables, cos=tables.sin, sin=tables.cos)


STANDARD = "lower.onnx.standard_form:StandardForm."


def on_model(place: str, damage: Callable[[Model], None]) -> Patch:
    """Damage the model when the filter has done its work."""
    return after(f"filters.{place}.apply", lambda result, self, model, args: damage(model))


def swap_rope_tables(model: Model) -> None:
    for node in nodes(model, "ROPE"):
        swap_operands(node, 1, 2)


def option(op_type: str, name: str, change: Callable[[Any], Any]) -> Callable[[Model], None]:
    """Change an option of operators."""

    def damage(model: Model) -> None:
        for node in nodes(model, op_type):
            old = node.attributes[name]
            node.attributes[name] = ir.Attr(name, old.type, change(old.value))

    return damage


def cut_one_column_on(model: Model) -> None:
    """The second SLICE of each group starts one column on; the last starts one earlier."""
    for graph in model.graphs:
        slices = [node for node in graph if node.op_type == "SLICE"]
        begin = slices[1].inputs[1]
        assert begin is not None
        assert begin.const_value is not None
        numbers = begin.const_value.numpy().copy()
        numbers[-1] += 1
        slices[1].replace_input_with(1, add_constant(graph, numbers, "begin"))


def transpose_matrix(model: Model) -> None:
    for graph in model.graphs:
        for constant in graph.initializers.values():
            if constant.dtype == graphs.FLOAT and len(shape_of(constant)) == 2:
                numbers = constant.const_value.numpy()  # type: ignore[union-attr]
                flat = np.ascontiguousarray(numbers.T).reshape(numbers.shape)
                constant.const_value = ir.Tensor(flat, name=constant.name)


def cross_names(model: Model) -> None:
    for signature in model.signatures:
        names, values = list(signature.outputs), list(signature.outputs.values())
        signature.outputs = dict(zip(names, values[::-1], strict=True))


def first_is_third(model: Model) -> None:
    (signature,) = model.signatures
    signature.outputs["third"] = signature.outputs.pop("first")


def cross_input_names(model: Model) -> None:
    for signature in model.signatures:
        key, other = signature.inputs["key_0"], signature.inputs["value_0"]
        signature.inputs |= {"key_0": other, "value_0": key}


def forget_roles(model: Model) -> None:
    for graph in model.graphs:
        for one in (*graph.inputs, *graph.outputs):
            one.meta.pop("role", None)


def relabel_layout(model: Model) -> None:
    """The contract says the old layout of the values."""
    for graph in model.graphs:
        for one in graph.outputs:
            role = role_of(one)
            if role is not None and role.kind == "value":
                one.meta["role"] = replace(role, layout="BNTH")


def plain_decoder() -> Model:
    """A decoder of builtin operators without a contract."""
    model = lower_to_litert(decoder(Shape(N=4, K=4)))
    forget_roles(model)
    return formats.loads(formats.dumps(model))


def change_roles(change: Callable[[Role], Role | None]) -> Callable[[Model], None]:
    """Give inputs and outputs other roles."""

    def damage(model: Model) -> None:
        for graph in model.graphs:
            for one in (*graph.inputs, *graph.outputs):
                if (role := role_of(one)) is not None and (new := change(role)) is not None:
                    one.meta["role"] = new

    return damage


def crossed_kind(role: Role) -> Role | None:
    kinds = {"key_cache": "value_cache", "value_cache": "key_cache"}
    return replace(role, kind=kinds[role.kind]) if role.kind in kinds else None  # type: ignore[arg-type]


def half_of_fc(model: Model) -> None:
    """The weights of two layers are exchanged."""
    first, second = nodes(model, "FULLY_CONNECTED")
    a, b = first.inputs[1], second.inputs[1]
    first.replace_input_with(1, b)
    second.replace_input_with(1, a)


def two_layers() -> Model:
    graph = Graph("main")
    x = graph.input("x", [2, 64])
    h = graph.fc(x, graph.constant("w", weights(64, 64)), "h", graph.constant("b", weights(64)))
    graph.output(graph.fc(h, graph.constant("w2", weights(64, 64, seed=3)), "y"))
    return graph.model(format="tflite")


def parameters_of_scale(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Model], None]:
    """Change a parameter of the quantization of int8 constants."""

    def damage(model: Model) -> None:
        for graph in model.graphs:
            for constant in graph.initializers.values():
                if constant.dtype == ir.DataType.INT8:
                    quantization = constant.meta["fields"]["quantization"]
                    setattr(quantization, name, change(np.array(getattr(quantization, name))))

    return damage


def lose_public_input(model: Model) -> None:
    """The graph keeps it."""
    del model.signatures[0].inputs["input_ids"]


def change_composite(model: Model) -> None:
    """The scale among the options of composites, which a delegate reads."""
    for node in nodes(model, "STABLEHLO_COMPOSITE"):
        name = "compositeAttributes"
        options = flexbuffers.Loads(bytes(np.asarray(node.attributes[name].value, np.uint8)))
        options = {key: x * 1.5 if isinstance(x, float) else x for key, x in options.items()}
        node.attributes[name] = ir.AttrInt64s(name, list(flexbuffers.Dumps(options)))


def drop_cast(model: Model) -> None:
    """The users of the last CAST read its operand."""
    cast = nodes(model, "CAST")[-1]
    operand = cast.inputs[0]
    assert operand is not None
    cast.outputs[0].replace_all_uses_with(operand, replace_graph_outputs=False)


def remove_node(model: Model, op_type: str) -> None:
    for node in nodes(model, op_type):
        assert node.graph is not None
        node.graph.remove(node, safe=False)


def drop_output(name: str) -> Callable[[Model], None]:
    def damage(model: Model) -> None:
        for signature in model.signatures:
            one = signature.outputs.pop(name, None)
            if one is not None and one in signature.graph.outputs:
                signature.graph.outputs.remove(one)

    return damage


def reverse_outputs(model: Model) -> None:
    for signature in model.signatures:
        signature.outputs = dict(reversed(signature.outputs.items()))
        signature.graph.outputs[:] = list(signature.graph.outputs)[::-1]


def swap_inputs(op_type: str) -> Callable[[Model], None]:
    def damage(model: Model) -> None:
        swap_operands(nodes(model, op_type)[0], 0, 1)

    return damage


def signatures_crossed(model: Model) -> None:
    first, second, *_ = model.signatures
    first.name, second.name = second.name, first.name


def slot_names_crossed(model: Model) -> None:
    for signature in model.signatures:
        key, other = (signature.outputs[f"kv_cache_{kind}_0"] for kind in "kv")
        signature.outputs |= {"kv_cache_k_0": other, "kv_cache_v_0": key}


def last_position(model: Model) -> None:
    """The position is read from the last element of input_pos."""
    for graph in model.graphs:
        for node in list(graph):
            if node.op_type in ("SLICE", "STRIDED_SLICE") and node.inputs[0] in list(graph.inputs):
                count = shape_of(node.inputs[0])[0]
                node.replace_input_with(1, add_constant(graph, np.int32([count - 1]), "last"))


def flipped_rows(graph: ir.Graph, rows: dict[ir.Value, int], capacity: int) -> None:
    """The last rows of constants in place of the first."""
    for constant, axis in rows.items():
        if constant.const_value is not None and constant.producer() is None:
            numbers = np.flip(constant.const_value.numpy(), axis)
            constant.const_value = ir.Tensor(np.ascontiguousarray(numbers), name=constant.name)


def bucket_outputs_crossed(result: None, model: Model, *_: Any) -> None:
    signature = model.signatures[-1]
    names = [name for name, one in signature.outputs.items() if (role := role_of(one)) and role.is_rows]
    first, second = (signature.outputs[name] for name in names)
    signature.outputs |= dict(zip(names, (second, first), strict=True))


def read_at_position(result: None, model: Model, *_: Any) -> None:
    """The rows are written where they should be, and attention masks others."""
    for graph in model.graphs:
        position = next(value for value in graph.inputs if value.name == "position")
        for node in graph:
            if node.op_type == "o2o.attention":
                node.replace_input_with(3, position)


def swap_nibbles(original: Wrapper, self: Any, *given: Any) -> Any:
    """Of the bytes [.., 2 numbers each]."""
    packed = original(self, *given)
    bytes_ = np.frombuffer(packed.tobytes(), np.uint8)
    return (bytes_ << 4 | bytes_ >> 4).astype(np.uint8)


def scales_of_the_row_before(result: None, self: Any, *_: Any) -> None:
    self.stored_scales = np.roll(self.stored_scales, 1, 0)


def coarse_scales(original: Wrapper, *given: Any) -> Any:
    return original(*given) * np.float32(8)


def next_ids(model: Model) -> None:
    for node in nodes(model, "EMBEDDING_LOOKUP"):
        ids = node.inputs[0]
        assert ids is not None
        assert node.graph is not None
        op = Builder(node.graph, before=node)
        one = op.constant([1], "one", np.int32)
        shifted = op.node("SUB", [ids, one], shape_of(ids), graphs.INT32)
        zero = op.constant([0], "zero", np.int32)
        node.replace_input_with(0, op.node("MAXIMUM", [shifted, zero], shape_of(ids), graphs.INT32))


def changed_argument(place: str, index: int, change: Callable[[Any], Any]) -> Patch:
    """Call a function with another argument."""

    def wrapper(original: Wrapper, *given: Any, **more: Any) -> Any:
        changed = [change(one) if number == index else one for number, one in enumerate(given)]
        return original(*changed, **more)

    return around(place, wrapper)


def swapped_arguments(place: str, first: int, second: int) -> Patch:
    def wrapper(original: Wrapper, *given: Any, **more: Any) -> Any:
        swapped = list(given)
        swapped[first], swapped[second] = given[second], given[first]
        return original(*swapped, **more)

    return around(place, wrapper)


def one_key_more(original: Wrapper, *given: Any) -> Any:
    """Query t sees the key after its own."""
    op, offset, query, key, *window = given
    return original(op, offset, query + 1, key, *window)


def nothing_hidden(original: Wrapper, op: Builder, *given: Any) -> Any:
    mask = original(op, *given)
    return op.node("SUB", [mask, mask], shape_of(mask))


def no_rows_output(*given: Any) -> None:
    """The updated cache is no output."""


def no_row_returned(
    _: Wrapper, model: Model, graph: ir.Graph, op: Any, updated: ir.Value, *given: Any
) -> None:
    """The updated cache is no output, and neither is its row."""
    graph.outputs.remove(updated)
    for signature in model.signatures:
        signature.outputs = {name: v for name, v in signature.outputs.items() if v is not updated}


def crossed_rows_outputs(
    original: Wrapper, model: Any, graph: Any, cache: ir.Value, rows: Any, role: Any
) -> None:
    """Keys and values exchange names."""
    name = cache.name or ""
    other = name.replace("key", "?").replace("value", "key").replace("?", "value")
    cache.name = other
    original(model, graph, cache, rows, role)
    cache.name = name


def numbers_of_other(result: Any, model: Model, *_: Any) -> None:
    """The weight is bound to other bytes of the file: those of the next tensor."""
    for graph in model.graphs:
        for constant in graph.initializers.values():
            stored = getattr(constant.const_value, "stored", None)
            if stored is not None:
                constant.const_value.stored = replace(stored, offset=stored.offset - 4 * 48)  # type: ignore


def exchange_rows(result: ir.Model, *_: Any) -> None:
    """Of two tokens that no run reads."""
    table = result.graph.initializers["embed_tokens.weight"]
    assert table.const_value is not None
    numbers = table.const_value.numpy().copy()
    ids = np.random.default_rng(0).integers(0, len(numbers), 7)  # those of the check
    unread = [row for row in range(len(numbers)) if row not in ids][:2]
    numbers[unread] = numbers[unread[::-1]]
    table.const_value = ir.Tensor(numbers, name=table.name)


DEFECTS = {
    # fuse.attention.py: the operands of ATTENTION
    "keys and values swapped": Defect(
        "fuse_attention", [], CACHED, before(RULE, swap_fields("wk", "wv")), "output y .* tensor .* is out"
    ),
    "queries and output swapped": Defect(
        "fuse_attention",
        [],
        functools.partial(attention_block, K=3, G=1),
        before(RULE, swap_fields("wq", "wo")),
        "output y",
    ),
    "keys of a concatenated cache": Defect(
        "fuse_attention", [], CONCATENATED, before(RULE, swap_fields("wk", "wv")), "output y"
    ),
    "caches swapped": Defect(
        "fuse_attention", [], CACHED, before(RULE, swap_fields("k_cache", "v_cache")), "past_key_0"
    ),
    "mask dropped": Defect("fuse_attention", [], MASKED, before(RULE, no_mask), "output y .* is out"),
    "sine and cosine swapped": Defect(
        "fuse_attention", [], CACHED, before(RULE, swap_fields("cos", "sin")), "past_key_0"
    ),
    "written one row on": Defect(
        "fuse_attention", [], CACHED, before(RULE, next_position), "present_key_0|past_key_0|output y"
    ),
    "mask of the core dropped": Defect(
        "fuse_attention",
        [],
        functools.partial(attention_block, mask="input", T=3, broken="bias"),
        around("rewriting.attention.mask_operand:MaskOperands.build", lambda original, *_: None),
        "output y of main differs .* the first tensor that differs is transpose_4",
    ),
    "a window of one key less": Defect(
        "fuse_attention",
        [],
        functools.partial(attention_block, join="slice", layout="BNTH", T=2, past=7, broken="bias"),
        after(
            "rewriting.attention.mask_rule:prove_meaning",
            lambda result, *_: object.__setattr__(result, "window", 1),
        ),
        "output y",
    ),
    "an output dropped by the fusion": Defect(
        "fuse_attention",
        [],
        MASKED,
        on_model("fuse_attention:FuseAttention", drop_output("y")),
        "output y of .* disappeared",
    ),
    # fuse.rms_norm.py, fuse.rope.py
    "another epsilon": Defect(
        "fuse_rms_norm",
        [],
        rms_norm,
        after(
            "rewriting.rms_norm:match_normalized",
            lambda result, node: object.__setattr__(result, "epsilon", 0.24),
        ),
        "the first tensor that differs is",
    ),
    "the weight of the norm dropped": Defect(
        "fuse_rms_norm", [], rms_norm, on_model("fusion:Fusion", ones_for_weight), "first tensor that differs"
    ),
    "rotation by swapped tables": Defect(
        "fuse_rope", [], rope, on_model("fusion:Fusion", swap_rope_tables), "first tensor that differs"
    ),
    # fuse.fc.py, fuse.bmm_lhs_const.py, reshape.fc_weight.py
    "stacked in another order": Defect(
        "fuse_fc",
        [],
        lambda: test_fuse_fc.projections("qkv"),
        changed_argument("rewriting.stacked_products:stack_weights", 1, lambda values: values[::-1]),
        "q|k|v",
    ),
    "split at the wrong column": Defect(
        "fuse_fc",
        [],
        lambda: test_fuse_fc.projections("qkv"),
        on_model("fuse_fc:FuseFc", cut_one_column_on),
        "output k of",
    ),
    "the constant not transposed": Defect(
        "fuse_bmm_lhs_const",
        [],
        lambda: test_fuse_bmm_lhs_const.build(test_fuse_bmm_lhs_const.Form(M=4, adjoint_lhs=True)),
        on_model("fusion:Fusion", transpose_matrix),
        "output|constant",
    ),
    "the product not swapped back": Defect(
        "fuse_bmm_lhs_const",
        [],
        lambda: test_fuse_bmm_lhs_const.build(test_fuse_bmm_lhs_const.Form(M=5)),
        around(
            "rewriting.bmm_const:_swap",
            lambda original, op, x, name: x if name == "product" else original(op, x, name),
        ),
        "output",
    ),
    "the weight transposed": Defect(
        "reshape_fc_weight",
        [],
        test_reshape_fc_weight.deep,
        on_model("reshape_fc_weight:ReshapeFcWeight", transpose_matrix),
        "output y",
    ),
    # reshape.io.py, transpose.io.kvcache.py
    "reshaped after a transpose": Defect(
        "reshape_io",
        ["output", "--by_shape", "[2,3]", "[6]"],
        graphs.linear,
        around(
            "filters.reshape_io:insert_before_output",
            lambda original, model, graph, one, build: original(
                model, graph, one, lambda op, x: build(op, op.transpose(x, (1, 0)))
            ),
        ),
        "output y .* differs",
    ),
    "reshaped to another shape": Defect(
        "reshape_io",
        ["output", "--by_shape", "[2,3]", "[6]"],
        graphs.linear,
        changed_argument("filters.reshape_io:_reshape_output", 3, lambda shape: (3, 2)),
        r"output y of main became \[3, 2\] instead of \[6\]",
    ),
    "wrong permutation": Defect(
        "transpose_io_kvcache",
        [],
        language_model,
        value("rewriting.cache_layout:PERMUTATION", (0, 2, 1, 3)[::-1]),
        "past_key_0|present_key_0",
    ),
    "rows not transposed": Defect(
        "transpose_io_kvcache",
        [],
        language_model,
        around(
            "rewriting.cache_layout:_transposed_rows",
            lambda original, op, x: op.reshape(x, [shape_of(x)[axis] for axis in (0, 2, 1, 3)]),
        ),
        "present_key_0|present_value_0|logits",
    ),
    "the contract names another layout": Defect(
        "transpose_io_kvcache",
        [],
        language_model,
        on_model("transpose_io_kvcache:TransposeIoKvcache", relabel_layout),
        "present_value_0",
    ),
    # merge.circles.py
    "shared constants that differ": Defect(
        "merge_circles",
        [],
        lambda: language_model((1,), ("decode",)),
        after("filters.merge_circles:deduplicate_constants", share_by_shape),
        "constant .* of decode has other numbers",
    ),
    "signature dropped": Defect(
        "merge_circles",
        [],
        language_model,
        after("filters.merge_circles:MergeCircles.merged", lambda result, *_: result.signatures.pop(0)),
        "signature prefill_4 disappeared",
    ),
    "signatures crossed": Defect(
        "merge_circles",
        [],
        language_model,
        after("filters.merge_circles:MergeCircles.merged", lambda result, *_: signatures_crossed(result)),
        "prefill_4|decode",
    ),
    "names of signatures crossed": Defect(
        "merge_circles",
        ["--sig-names", "a;b"],
        language_model,
        changed_argument("filters.merge_circles:_rename", 1, lambda names: names[::-1]),
        "of a|of b|signatures",
    ),
    # downcast.input_ids.py
    "cast dropped": Defect(
        "downcast_input_ids",
        [],
        casts,
        on_model("downcast_input_ids:DowncastInputIds", drop_cast),
        "the result|output",
    ),
    "another input cast as well": Defect(
        "downcast_input_ids",
        [],
        language_model,
        around(
            "filters.downcast_input_ids:_tokens",
            lambda original, model: {v for g in model.graphs for v in g.inputs if v.dtype == graphs.INT64},
        ),
        "input cache_position",
    ),
    # remove.io.py, rename.io.py, reorder.output.py, select.op.py
    "another output removed": Defect(
        "remove_io",
        ["output", "--keep_by_name", "difference,product"],
        two_inputs,
        changed_argument("filters.remove_io:_remove", 2, lambda keep: {0, 1}),
        "output product of main disappeared",
    ),
    "one output too many removed": Defect(
        "remove_io",
        ["output", "--keep_by_id", "0-1"],
        two_inputs,
        changed_argument("filters.remove_io:_remove", 2, lambda keep: {0}),
        "output quotient of main disappeared",
    ),
    "names crossed": Defect(
        "rename_io",
        ["output", "difference=first", "product=second"],
        two_inputs,
        on_model("rename_io:RenameIo", cross_names),
        "output",
    ),
    "another name": Defect(
        "rename_io",
        ["output", "difference=first"],
        two_inputs,
        on_model("rename_io:RenameIo", first_is_third),
        "output first of main disappeared",
    ),
    "roles forgotten": Defect(
        "rename_io",
        ["output", "logits=scores"],
        language_model,
        on_model("rename_io:RenameIo", forget_roles),
        "has the role none in the contract",
    ),
    "the prefix of other names": Defect(
        "rename_io_remove_prefix",
        ["past_"],
        language_model,
        on_model("rename_io_remove_prefix:RenameIoRemovePrefix", cross_input_names),
        "key_0|value_0",
    ),
    "another order": Defect(
        "reorder_output",
        ["--by_name", "product,difference,quotient"],
        two_inputs,
        changed_argument("filters.reorder_output:reorder", 2, lambda order: order[::-1]),
        "the outputs of main have another order",
    ),
    "the last output moved to the front": Defect(
        "reorder_output_move_0_to_last",
        [],
        two_inputs,
        changed_argument("filters.reorder_output_move_0_to_last:reorder", 2, lambda order: [2, 0, 1]),
        "the outputs of main have another order",
    ),
    "outputs crossed": Defect(
        "reorder_output",
        ["--by_name", "product,difference,quotient"],
        two_inputs,
        on_model("reorder_output:ReorderOutput", cross_names),
        "output",
    ),
    "operands of a part crossed": Defect(
        "select_op",
        ["--by_id", "2"],
        two_inputs,
        on_model("select_op:SelectOp", swap_inputs("SUB")),
        "difference",
    ),
    "an operator too many": Defect(
        "select_op",
        ["--by_id", "3"],
        two_inputs,
        changed_argument("filters.select_op:extract", 2, lambda chosen: set(next(iter(chosen)).graph[1:4])),
        "input|output",
    ),
    "an output of a part dropped": Defect(
        "select_op",
        ["--by_id", "0-1"],
        two_inputs,
        on_model("select_op:SelectOp", drop_output("positive")),
        "output positive of main disappeared",
    ),
    # gc.py, raise.circle.py, bind.weights.py
    "a constant emptied": Defect(
        "gc",
        [],
        graphs.linear,
        on_model("gc:Gc", lambda model: zero_constant(None, model)),
        "constant weight of main",
    ),
    "an output collected": Defect(
        "gc", [], graphs.linear, on_model("gc:Gc", drop_output("z")), "output z of main disappeared"
    ),
    "an input lost by a signature": Defect(
        "gc",
        [],
        language_model,
        on_model("gc:Gc", lose_public_input),
        "input input_ids of prefill_4 disappeared from the signature",
    ),
    "a signature collected": Defect(
        "gc",
        [],
        language_model,
        on_model("gc:Gc", lambda model: drop_signature(None, model)),
        "signature prefill_4 disappeared",
    ),
    "an initializer collected": Defect(
        "gc", [], graphs.call_once, on_model("gc:Gc", lambda model: remove_node(model, "CALL_ONCE")), "main"
    ),
    "a branch collected": Defect(
        "gc",
        [],
        graphs.conditional,
        on_model("gc:Gc", lambda model: exchange_branches(model)),
        "output y",
    ),
    "an option not converted": Defect(
        "raise_circle",
        [],
        tflite_norm,
        on_model("raise_circle:RaiseCircle", option("SOFTMAX", "beta", lambda beta: 0.5)),
        "first tensor that differs is",
    ),
    "the rows of another tensor": Defect(
        "bind_weights",
        ["--partial"],
        half_precision,
        after("filters.bind_weights:bind", numbers_of_other),
        "constant w|output y",
    ),
    # bucket.kvcache.py, sign.ai_edge.py
    "wrong rows of a bucket": Defect(
        "bucket_kvcache",
        ["--capacities", "8"],
        bucketed,
        before("rewriting.cache_buckets:_shorten", flipped_rows),
        "of decode_8",
    ),
    "outputs of a bucket crossed": Defect(
        "bucket_kvcache",
        ["--capacities", "8"],
        bucketed,
        after("filters.bucket_kvcache:add_cache_buckets", bucket_outputs_crossed),
        "present_.*_0 of decode_8",
    ),
    # window.kvcache.py
    "a window cache that is read at the position": Defect(
        "window_kvcache",
        [],
        window_model,
        after("filters.window_kvcache:shrink_window_caches", read_at_position),
        "of prefill_4|of decode",
    ),
    "a bucket of another capacity": Defect(
        "bucket_kvcache",
        ["--capacities", "8"],
        bucketed,
        changed_argument("filters.bucket_kvcache:add_cache_buckets", 2, lambda capacities: [4]),
        "signature decode_8 disappeared",
    ),
    "prefills crossed": Defect(
        "sign_ai_edge",
        [],
        two_prefills,
        on_model("sign_ai_edge:SignAiEdge", signatures_crossed),
        "prefill_[24]",
    ),
    "slots crossed": Defect(
        "sign_ai_edge",
        [],
        lowered_language_model,
        on_model("sign_ai_edge:SignAiEdge", slot_names_crossed),
        "kv_cache_[kv]_0",
    ),
    "the last position read": Defect(
        "sign_ai_edge",
        [],
        lowered_language_model,
        on_model("sign_ai_edge:SignAiEdge", last_position),
        "of prefill",
    ),
    "no logits of decode": Defect(
        "sign_ai_edge",
        [],
        lowered_language_model,
        on_model("sign_ai_edge:SignAiEdge", drop_output("logits")),
        "output logits of decode disappeared",
    ),
    # sign.contract.py
    "keys and values crossed in the contract": Defect(
        "sign_contract",
        [],
        plain_decoder,
        on_model("sign_contract:SignContract", change_roles(crossed_kind)),
        "past_key_0 of decode reaches|past_key_0 of decode acts|so it is no value_cache",
    ),
    "tokens for the position": Defect(
        "sign_contract",
        [],
        plain_decoder,
        on_model(
            "sign_contract:SignContract",
            change_roles(
                lambda role: {"tokens": Role("position"), "position": Role("tokens")}.get(role.kind)
            ),
        ),
        "before the position input_ids do not change|after position . change the logits",
    ),
    "another layout in the contract": Defect(
        "sign_contract",
        [],
        plain_decoder,
        on_model(
            "sign_contract:SignContract",
            change_roles(
                lambda role: (
                    replace(role, layout="BNTH" if role.layout == "BTNH" else "BTNH")
                    if role.is_cache
                    else None
                )
            ),
        ),
        "rows of past_key_0 of decode after position",
    ),
    # lower.litert.py
    "another scale": Defect(
        "lower_litert",
        [],
        DECODE,
        changed_argument(SDPA, 1, lambda of: replace(of, scale=of.scale * 1.01)),
        "is attended",
    ),
    "lowered keys and values swapped": Defect(
        "lower_litert",
        [],
        DECODE,
        changed_argument(SDPA, 1, lambda of: replace(of, k=of.v, v=of.k)),
        "is attended",
    ),
    "lowered mask dropped": Defect(
        "lower_litert",
        [],
        functools.partial(fused_attention, layout="BNTH", mask=(1, 1, 1, 7)),
        around(
            SDPA,
            lambda original, op, of, position: original(
                op, replace(of, mask=op.node("SUB", [of.mask, of.mask], shape_of(of.mask))), position
            ),
        ),
        "is attended",
    ),
    "one key more": Defect(
        "lower_litert",
        [],
        PREFILL,
        around("lower.litert.sdpa:causal_mask", one_key_more),
        "is attended",
    ),
    "heads of another group": Defect(
        "lower_litert",
        [],
        functools.partial(fused_attention, layout="BNTH", G=3, K=2, T=1),
        around(
            "lower.litert.sdpa:swap_heads",
            lambda original, op, x: (
                original(
                    op,
                    op.transpose(op.reshape(x, [1, 2, 3, shape_of(x)[3]]), (0, 2, 1, 3))
                    if shape_of(x)[1] == 6
                    else x,
                )
                if shape_of(x)[1] != 6
                else op.reshape(
                    op.transpose(op.reshape(x, [1, 2, 3, shape_of(x)[3]]), (0, 2, 1, 3)),
                    [1, 1, 6, shape_of(x)[3]],
                )
            ),
        ),
        "is attended",
    ),
    "written at the next row": Defect(
        "lower_litert",
        [],
        DECODE,
        around(
            "rewriting.attention.expand_attention:_update_start",
            lambda original, op, *given: op.constant([0, 0, 3, 0], "start", np.int32),
        ),
        "attended|present_key_0",
    ),
    "rotated by swapped tables": Defect(
        "lower_litert",
        [],
        DECODE,
        swapped_arguments("lower.litert.rope:rotate_halves", 2, 3),
        "past_key_0",
    ),
    "the updated cache not returned": Defect(
        "lower_litert",
        [],
        DECODE,
        around("rewriting.attention.expand_attention:_output_cache", no_rows_output),
        "past_key_0",
    ),
    "updated caches crossed": Defect(
        "lower_litert",
        [],
        functools.partial(fused_attention, layout="BNTH", has_roles=False),
        around("rewriting.attention.expand_attention:add_rows_output", crossed_rows_outputs),
        "past_(key|value)_0|present_(key|value)_0",
    ),
    "another lowered epsilon": Defect(
        "lower_litert",
        [],
        functools.partial(rms_norm, False),
        around("lower.litert.rms_norm:attribute", lambda original, *given: 1e-6),
        "first tensor that differs is",
    ),
    "lowered rotation by swapped tables": Defect(
        "lower_litert",
        [],
        functools.partial(rope, False),
        swapped_arguments("lower.litert.rope:rotate_halves", 2, 3),
        "first tensor that differs is",
    ),
    "flash attention without its last block": Defect(
        "lower_litert",
        ["--flash", "2,4"],
        functools.partial(fused_attention, layout="BNTH", T=3, S=8),
        around("lower.litert.flash_attention:causal_mask", nothing_hidden),
        "is attended",
    ),
    # legalize.onert.py
    "another mask for onert": Defect(
        "legalize_onert",
        [],
        DECODE,
        around(
            f"{ONERT}_mask",
            lambda original, op, position, S, window: original(
                op, op.node("ADD", [position, op.constant([1], "one", np.int32)], shape_of(position)), S
            ),
        ),
        "is attended",
    ),
    "another new row for onert": Defect(
        "legalize_onert",
        [],
        DECODE,
        around(
            f"{ONERT}_change_cache",
            lambda original, model, graph, op, write, layout, row: original(
                model, graph, op, write, layout, op.node("ADD", [row, row], shape_of(row))
            ),
        ),
        "past_(key|value)_0",
    ),
    "the new row not returned": Defect(
        "legalize_onert", [], DECODE, around(f"{ONERT}output_row", no_row_returned), "past_(key|value)_0"
    ),
    "scales of other rows": Defect(
        "legalize_onert",
        [],
        quantized_attention,
        around(
            "lower.onert.fully_connected:_row_scales",
            lambda original, *given: None if (s := original(*given)) is None else np.roll(s, 1),
        ),
        "attended",
    ),
    # lower.onnx.py
    "another scale in ONNX": Defect(
        "lower_onnx",
        [],
        decoder,
        changed_argument(
            f"{STANDARD}attend",
            1,
            lambda of: replace(of, scores=replace(of.scores, scale=of.scores.scale * 1.1)),
        ),
        r"is layers\.0\.attention",
    ),
    "another epsilon in ONNX": Defect(
        "lower_onnx",
        [],
        decoder,
        changed_argument(f"{STANDARD}norm", 2, lambda norm: replace(norm, epsilon=norm.epsilon / 10)),
        r"is layers\.0\.norm",
    ),
    "keys and values swapped in ONNX": Defect(
        "lower_onnx",
        ["--form", "ort"],
        decoder,
        changed_argument(
            "lower.onnx.ort_form:OrtForm.attend_projected",
            1,
            lambda of: replace(of, matrices=[of.matrices[0], of.matrices[2], of.matrices[1]]),
        ),
        r"is layers\.0\.attention",
    ),
    "one key more in ONNX": Defect(
        "lower_onnx",
        [],
        decoder,
        around(
            f"{STANDARD}_visible",
            lambda original, self, S, row, window, name: self.op.node(
                "LessOrEqual",
                [
                    self.op.constant(np.arange(S) - 1, "keys"),
                    self.op.reshape(self.tokens.positions, ["T", 1], "queries"),
                ],
                ["T", S],
                ir.DataType.BOOL,
                name,
            ),
        ),
        r"is layers\.0\.attention|logits",
    ),
    "rotation by swapped tables in ONNX": Defect(
        "lower_onnx",
        [],
        decoder,
        around(
            "lower.onnx.attention:rotation_of",
            lambda original, *given: swapped_tables(original(*given)),
        ),
        r"is layers\.0\.attention|logits",
    ),
    "a cache of ONNX dropped": Defect(
        "lower_onnx",
        [],
        decoder,
        after("filters.lower_onnx:lower_to_onnx", lambda result, *_: result.graph.outputs.pop()),
        "output present_value_1 disappeared",
    ),
    "rows of the embedding exchanged in ONNX": Defect(
        "lower_onnx",
        [],
        decoder,
        after("filters.lower_onnx:lower_to_onnx", exchange_rows),
        "constant embed_tokens.weight has other numbers",
    ),
    # wrap.composites.py
    "another scale of a composite": Defect(
        "wrap_composites",
        [],
        test_wrap_composites.attention,
        on_model("wrap_composites:WrapComposites", scale_constants),
        "output y",
    ),
    "operands of a composite swapped": Defect(
        "wrap_composites",
        [],
        lambda: test_wrap_composites.attention(T=6),
        on_model("wrap_composites:WrapComposites", swap_composite_operands),
        "output y",
    ),
    "other options of a composite": Defect(
        "wrap_composites",
        [],
        test_wrap_composites.attention,
        on_model("wrap_composites:WrapComposites", change_composite),
        "output y",
    ),
    # quantize.weights.py
    "weights of two layers": Defect(
        "quantize_weights",
        [],
        two_layers,
        on_model("quantize_weights:QuantizeWeights", half_of_fc),
        "first tensor that differs is h",
    ),
    "a bias dropped": Defect(
        "quantize_weights",
        ["--recipe", "weight_only_int8"],
        two_layers,
        on_model(
            "quantize_weights:QuantizeWeights",
            lambda model: nodes(model, "FULLY_CONNECTED")[0].replace_input_with(2, None),
        ),
        "first tensor that differs is h",
    ),
    "a zero point": Defect(
        "quantize_weights",
        [],
        two_layers,
        on_model("quantize_weights:QuantizeWeights", parameters_of_scale("zeroPoint", lambda x: x + 3)),
        "constant w",
    ),
    "a negative scale": Defect(
        "quantize_weights",
        [],
        two_layers,
        on_model("quantize_weights:QuantizeWeights", parameters_of_scale("scale", np.negative)),
        "constant w",
    ),
    "nibbles swapped": Defect(
        "quantize_weights",
        ["--recipe", "dynamic_int4_block32"],
        embedding,
        around("quantization.rounding:RowQuantizer.quantize", swap_nibbles),
        "constant (table|head) of main",
    ),
    "stale scales": Defect(
        "quantize_weights",
        [],
        embedding,
        after("quantization.tensors:QuantizedTensor.__init__", scales_of_the_row_before),
        "constant (table|head) of main",
    ),
    "coarse scales": Defect(
        "quantize_weights",
        [],
        embedding,
        around("quantization.tensors:best_scales", coarse_scales),
        "constant (table|head) of main",
    ),
    "the row before is looked up": Defect(
        "quantize_weights",
        [],
        embedding,
        on_model("quantize_weights:QuantizeWeights", next_ids),
        "output rows .* is rows",
    ),
    "scales of another matrix in blocks": Defect(
        "quantize_weights",
        ["--recipe", "dynamic_int4_block32_head"],
        embedding,
        around(
            "quantization.quantize:add_constant",
            lambda original, graph, array, name: original(graph, array[::-1].copy(), name),
        ),
        "constant (table|head) of main",
    ),
}


def model_of(defect: Defect, tmp_path: Path) -> Model:
    return defect.model(tmp_path) if defect.model is half_precision else defect.model()


def saved(defect: Defect, tmp_path: Path) -> Path:
    source = tmp_path / "in.circle"
    formats.save(model_of(defect, tmp_path), source)
    return source


def run(defect: Defect, source: Path) -> tuple[int, Path]:
    target = source.with_name("out.circle")
    code = filters.load(defect.module).main([*defect.arguments, str(source), "-o", str(target), "--check"])
    return code, target


SOUND: set[tuple[object, ...]] = set()
"""The filters, arguments and models that passed `--check` without a defect. Several defects share them."""


@pytest.mark.parametrize("name", DEFECTS)
def test_it_is_refused_and_named(name: str, tmp_path, monkeypatch, capsys) -> None:
    defect = DEFECTS[name]
    source = saved(defect, tmp_path)
    case = defect.module, *defect.arguments, source.read_bytes()
    if case not in SOUND:
        code, target = run(defect, source)
        assert code == 0, capsys.readouterr().err
        target.unlink()
        capsys.readouterr()
        SOUND.add(case)
    defect.patch(monkeypatch)
    code, target = run(defect, source)
    error = capsys.readouterr().err
    assert code == 1, error
    assert not target.exists()
    (line,) = error.splitlines()
    assert re.match(rf"{re.escape(filters.load(defect.module).name)}: --check: .*", line)
    assert re.search(defect.named, line), line
