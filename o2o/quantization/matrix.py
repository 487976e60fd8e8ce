"""A constant matrix of a model, and its uses: what quantization decides about."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from o2o.contract import role_of
from o2o.model import Model, shape_of

Part = Literal["matrix", "embedding", "head"]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
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
        path: Nodes between constant and node that transpose or convert it (ONNX).
        by_columns: Whether the rows of the matrix are the columns of the constant (ONNX).
    """

    graph: ir.Graph
    node: ir.Node
    operand: int
    part: Part | None
    reason: str = ""
    widened: ir.Node | None = None
    path: tuple[ir.Node, ...] = ()
    by_columns: bool = False

    @property
    def first(self) -> tuple[ir.Node, int]:
        """The node that takes the constant, and the number of its operand."""
        return (self.path[0], 0) if self.path else (self.node, self.operand)


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
    def by_columns(self) -> bool:
        """Whether the rows of the matrix are the columns of the constant."""
        return any(use.by_columns for use in self.uses if use.part is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, columns], with a row for each result."""
        rows, columns = shape_of(self.value)
        return (columns, rows) if self.by_columns else (rows, columns)

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
        if len({use.by_columns for use in self.uses if use.part is not None}) > 1:
            return "its rows are columns for another operator"
        return next((use.reason for use in self.uses if use.part is None), "")


def is_tokens(model: Model, graph: ir.Graph, value: ir.Value) -> bool:
    """Return whether a value is the input of token ids, by its role or else by its name.

    Args:
        model: The model.
        graph: A graph of it.
        value: A value of that graph.

    Returns:
        True for the input.
    """
    if (role := role_of(value)) is not None:
        return role.kind == "tokens"
    inputs = [item for signature in model.signatures_of(graph) for item in signature.inputs.items()]
    names = [value.name or "", *(name for name, other in inputs if other is value)]
    return value.is_graph_input() and any(TOKENS.search(name) for name in names)


def logits_of(model: Model, graph: ir.Graph) -> list[ir.Value]:
    """Return the outputs that are logits, by role or else by name.

    Args:
        model: The model.
        graph: A graph of it.

    Returns:
        Outputs.
    """
    names = {id(v) for s in model.signatures_of(graph) for n, v in s.outputs.items() if n == "logits"}
    return [
        value
        for value in graph.outputs
        if ((role := role_of(value)) is not None and role.kind == "logits")
        or (role is None and (id(value) in names or value.name == "logits"))
    ]
