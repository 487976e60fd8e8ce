"""The uses of a model's matrices: as weights, as the LM head, as the embedding table, or otherwise."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from o2o.contract import role_of
from o2o.formats.tensors import is_constant, is_quantized, storage_key
from o2o.model import DOMAIN, Model, attribute, is_dynamic, shape_of
from o2o.operators.traits import PASS_THROUGH_OPS, lookup_operands, traits_of
from o2o.rewriting.matchers import producer_of

Part = Literal["matrix", "embedding", "head"]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
LM_HEAD_SUFFIX = "_head"  # suffix of the name of an LM head that was untied from the embedding
TOKENS = re.compile(r"token|ids", re.IGNORECASE)  # in the name of an input of token ids


@dataclass(frozen=True)
class Use:
    """A use of a constant matrix by a node.

    Attributes:
        graph: The graph of the node.
        node: The node.
        operand: The number of the operand.
        part: The part that the matrix plays for the node; None if it cannot be quantized.
        reason: Why it cannot be quantized.
        widened: The DEQUANTIZE from float16 to float32 between matrix and node, if any.
    """

    graph: ir.Graph
    node: ir.Node
    operand: int
    part: Part | None
    reason: str = ""
    widened: ir.Node | None = None


@dataclass
class Matrix:
    """A floating-point constant matrix with all its uses.

    Attributes:
        values: The values that have it as their constant, and their graphs.
        uses: The uses of these values.
        copied: It is a copy of another matrix of the model, made when embedding and LM head were untied.
    """

    values: list[tuple[ir.Graph, ir.Value]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    copied: bool = False

    @property
    def value(self) -> ir.Value:
        return self.values[0][1]

    @property
    def tensor(self) -> ir.TensorProtocol:
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def parts(self) -> set[Part]:
        return {use.part for use in self.uses if use.part is not None}

    @property
    def reason(self) -> str:
        """Why it cannot be quantized; "" if it can."""
        values = [value for _, value in self.values]
        if len({shape_of(value) for value in values}) > 1:
            return "its bytes are used in several shapes"
        if any(value.is_graph_output() for value in values):
            return "it is an output"
        return next((use.reason for use in self.uses if use.part is None), "")


def matrices(model: Model) -> list[Matrix]:
    """Find the weight matrices and embedding tables of a model.

    Args:
        model: The model.

    Returns:
        The matrices in the order of the graphs. Values that share their bytes are one matrix.
    """
    by_storage: dict[Hashable, Matrix] = {}
    for graph in model.graphs:
        lm_heads = set(_lm_heads(model, graph))
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in FLOATS and value.dtype in FLOATS:
                matrix = by_storage.setdefault(storage_key(value.const_value), Matrix())
                matrix.values.append((graph, value))
                matrix.uses += _uses(model, graph, value, lm_heads)
    return [matrix for matrix in by_storage.values() if matrix.parts]


def _uses(
    model: Model, graph: ir.Graph, value: ir.Value, lm_heads: set[ir.Node], widened: ir.Node | None = None
) -> Iterator[Use]:
    for node, operand in value.uses():
        widens = (node.domain, node.op_type) == (DOMAIN, "DEQUANTIZE")
        if widened is None and widens and not node.outputs[0].is_graph_output():
            yield from _uses(model, graph, node.outputs[0], lm_heads, node)
            continue
        reason = _unfit(model, graph, node, operand, value)
        part: Part | None = None
        if not reason:
            part = (
                "embedding" if traits_of(node).table is not None else "head" if node in lm_heads else "matrix"
            )
        yield Use(graph, node, operand, part, reason, widened)


def _unfit(model: Model, graph: ir.Graph, node: ir.Node, operand: int, value: ir.Value) -> str:
    """Why `value` cannot be quantized for `node`; "" if it can."""
    if operand not in traits_of(node).weights:
        return f"{node.op_type} takes no quantized operand here"
    if not is_constant(value) and value.producer() is None:
        return "it is an input"
    if len(shape_of(value)) != 2:
        return "it is not a matrix (reshape.fc_weight.py reshapes it)"
    if value.dtype != ir.DataType.FLOAT or node.outputs[0].dtype != ir.DataType.FLOAT:
        return f"{node.op_type} computes in {value.dtype}"
    if "sparsity" in value.meta.get("fields", {}):
        return "it is sparse"
    if node.op_type == "FULLY_CONNECTED":
        x = node.inputs[0]
        if x is None or x.dtype != ir.DataType.FLOAT or is_quantized(x):
            return "the other operand is not float32"
        if attribute(node, "weightsFormat", 0):
            return "it has a weights format of its own"
    if node.op_type == "GATHER" and (attribute(node, "axis", 0) or attribute(node, "batchDims", 0)):
        return "GATHER does not look up rows"
    if (lookup := lookup_operands(node)) is not None:
        _, ids = lookup
        if ids.dtype not in INTEGERS or is_dynamic(ids):
            return "its rows are not looked up by integers of a fixed shape"
        if not _are_tokens(model, graph, ids):
            return "its rows are not looked up by token ids"
    return ""


def _are_tokens(model: Model, graph: ir.Graph, ids: ir.Value) -> bool:
    """Whether `ids` come from the input of token ids, by its role or else by its name."""
    while (node := producer_of(ids, *PASS_THROUGH_OPS)) is not None and node.inputs[0] is not None:
        ids = node.inputs[0]
    if (role := role_of(ids)) is not None:
        return role.kind == "tokens"
    inputs = [item for signature in model.signatures_of(graph) for item in signature.inputs.items()]
    names = [ids.name or "", *(name for name, value in inputs if value is ids)]
    return ids.is_graph_input() and any(TOKENS.search(name) for name in names)


def _lm_heads(model: Model, graph: ir.Graph) -> Iterator[ir.Node]:
    """The FULLY_CONNECTED nodes of `graph` that compute logits, by role or else by the output's name."""
    names = {id(v) for s in model.signatures_of(graph) for n, v in s.outputs.items() if n == "logits"}
    for value in graph.outputs:
        role = role_of(value)
        if role.kind == "logits" if role else (id(value) in names or value.name == "logits"):
            node = value.producer()
            while node is not None and (moved := producer_of(node.outputs[0], *PASS_THROUGH_OPS)) is not None:
                node = moved.inputs[0].producer() if moved.inputs[0] is not None else None
            if node is not None and node.op_type == "FULLY_CONNECTED":
                yield node
