"""Constant folding in ONNX: what depends on constants and on static shapes alone is computed, once.

`onnx_ir` has no such pass, and onnxscript's optimizer is no dependency. Nodes are evaluated by ONNX's
reference evaluator. An `If` whose condition is constant becomes the nodes of its branch. Large constants of
the file are no operands: what is computed from weights stays an operator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from o2o.formats.tensors import SourceTensor, is_constant, is_constant_node
from o2o.model import Model, inner_graphs, keep_description, remove_nodes
from o2o.rewriting.builder import add_constant, fresh_name
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes

LARGEST = 1 << 20
"""Bytes of a result that is stored as a constant: masks and tables of positions, but no weights."""
_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)
_QUANTIZED = ("DequantizeLinear", "QuantizeLinear")  # a quantized weight stays quantized


def fold_constants(model: Model, record: dict[str, np.ndarray] | None = None) -> int:
    """Replace nodes of main graphs by their results where these are known.

    Args:
        model: An ONNX model with inferred shapes, changed in place.
        record: Gets each result by its name.

    Returns:
        The number of nodes that are gone.
    """
    before = sum(map(len, model.graphs))
    for graph, node in [(each, node) for each in model.graphs for node in each]:
        if is_constant_node(node):
            continue
        if node.op_type == "If" and node.domain == "" and _inline_branch(model, graph, node):
            continue
        results = _shape(node) if node.op_type in ("Shape", "Size") else _evaluated(model, node)
        if results is None:
            continue
        for value, numbers in zip(node.outputs, results, strict=True):
            if record is not None and value.name:
                record[value.name] = numbers
            _replace(graph, value, numbers)
    for each in model.all_graphs():
        remove_dead_nodes(each)
        remove_dead_constants(each)
    return before - sum(map(len, model.graphs))


def _replace(graph: ir.Graph, value: ir.Value, numbers: np.ndarray) -> None:
    """Let a constant take the place of a result. An output of the graph gets it through its own node."""
    if value.is_graph_output() or not value.uses():
        return
    constant = add_constant(graph, numbers, f"{value.name}_folded")
    value.replace_all_uses_with(constant)


def _shape(node: ir.Node) -> list[np.ndarray] | None:
    """The result of Shape or Size, of an operand whose shape is known where it matters."""
    operand = node.inputs[0]
    if node.domain != "" or operand is None or operand.shape is None:
        return None
    dims = list(operand.shape)
    if node.op_type == "Shape":
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        dims = dims[start.as_int() if start else 0 : end.as_int() if end else len(dims)]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    sizes = [int(dim) for dim in dims]  # type: ignore[arg-type]
    return [np.asarray(math.prod(sizes) if node.op_type == "Size" else sizes, np.int64)]


def _evaluated(model: Model, node: ir.Node) -> list[np.ndarray] | None:
    """The results of a node whose operands are all small constants; None for another."""
    if not is_foldable(node) or not any(value is not None for value in node.inputs):
        return None
    for value in node.inputs:
        if value is not None and not (is_constant(value) and not isinstance(value.const_value, SourceTensor)):
            return None  # also for a large constant of the file: its transpose would be stored twice
    for value in node.outputs:
        if not value.name or value.shape is None or not value.shape.is_static() or value.dtype is None:
            return None
        if (
            value.dtype == ir.DataType.STRING
            or math.prod(value.shape.numpy()) * value.dtype.bitwidth // 8 > LARGEST
        ):
            return None
    operands = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs]
    arrays = results_of(node, operands, model.graphs[0].opset_imports.get("", 1))
    fits = arrays is not None and all(
        tuple(array.shape) == tuple(value.shape.numpy())  # type: ignore[union-attr]
        for array, value in zip(arrays, node.outputs, strict=True)
    )
    return arrays if fits else None


def is_foldable(node: ir.Node) -> bool:
    """Return whether a node may be replaced by its results.

    Args:
        node: An ONNX node.

    Returns:
        False for operators of other domains, for random ones, for those that run graphs, and for those that
        quantize: a quantized weight stays quantized.
    """
    is_other = node.domain not in ("", "ai.onnx") or node.op_type in (*_RANDOM, *_QUANTIZED)
    return not is_other and not any(True for _ in inner_graphs(node))


def results_of(node: ir.Node, operands: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """Evaluate a node.

    Args:
        node: A node of ONNX's own domain.
        operands: The numbers of its operands; None for one that is absent.
        opset: The version of ONNX's operators.

    Returns:
        The numbers of its results; None if ONNX's evaluator cannot compute them.
    """
    names = ["" if array is None else f"x{index}" for index, array in enumerate(operands)]
    proto = ir.serde.serialize_node(node)
    proto.input[:] = names
    proto.output[:] = [f"y{index}" if value.name else "" for index, value in enumerate(node.outputs)]
    inputs = [onnx.ValueInfoProto(name=name) for name in names if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "node", inputs, outputs)
    feeds = {name: array for name, array in zip(names, operands, strict=True) if array is not None}
    try:
        evaluator = ReferenceEvaluator(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        )
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = iter(evaluator.run(None, feeds))
    except Exception:  # the evaluator lacks an operator, or the operands break its rules
        return None
    return [np.asarray(next(results)) if value.name else np.empty(0) for value in node.outputs]


def _inline_branch(model: Model, graph: ir.Graph, node: ir.Node) -> bool:
    """Replace an If by the branch that a constant condition chooses."""
    condition = node.inputs[0]
    if condition is None or not is_constant(condition):
        return False
    assert condition.const_value is not None
    chosen = bool(np.asarray(condition.const_value.numpy()).reshape(-1)[0])
    branch = node.attributes["then_branch" if chosen else "else_branch"].as_graph()
    results = list(branch.outputs)
    if any(value.producer() is None and not value.is_initializer() for value in results):
        return False
    returned = [new for old, new in zip(node.outputs, results, strict=True) if old.is_graph_output()]
    if any(value.is_initializer() for value in returned) or len(set(returned)) < len(returned):
        return False
    for name in list(branch.initializers):
        value = branch.initializers.pop(name)
        value.name = fresh_name(graph, name)
        graph.register_initializer(value)
    inner = list(branch)
    branch.outputs.clear()
    branch.remove(inner)
    for each in inner:
        graph.insert_before(node, each)
    for old, new in zip(node.outputs, results, strict=True):
        if old.is_graph_output():  # the caller knows its name
            old.name, new.name = fresh_name(graph, f"{old.name}_before"), old.name
            keep_description(old, new)
            if "role" in old.meta:
                new.meta["role"] = old.meta["role"]
            for signature in model.signatures:
                signature.replace(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_nodes(graph, [node])
    return True
