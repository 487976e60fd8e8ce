"""One ONNX node while it is raised: its raised operands, its attributes, and what its rule emits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from o2o.formats.schema import CIRCLE
from o2o.formats.tensors import constant_array
from o2o.formats.widened_tensor import OTHER_FLOATS
from o2o.model import CUSTOM_DOMAIN, DOMAIN, attribute, shape_of
from o2o.operators.shape_inference import Mismatch, infer_shapes
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import constant_ints, producer_of

INT32, INT64, FLOAT, BOOL = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL


class NotRaised(Exception):
    """The operator has no counterpart with these operands and attributes. The message says why."""


class Operation:
    """An ONNX node while its rule raises it.

    Attributes:
        node: The ONNX node.
        operands: Its operands as raised values; None for one that is absent.
        opset: The version of its domain that the model imports.
        values: The raised values of all ONNX values before the node.
        op: Inserts builtin operators at the end of the raised graph.
    """

    def __init__(
        self,
        node: ir.Node,
        operands: Sequence[ir.Value | None],
        opset: int,
        graph: ir.Graph,
        values: Mapping[ir.Value, ir.Value],
        in_float32: bool = False,
    ) -> None:
        """Prepare the raising of a node.

        Args:
            node: See `Operation`.
            operands: See `Operation`.
            opset: See `Operation`.
            graph: The raised graph, which gets the operators.
            values: See `Operation`.
            in_float32: Whether float16, bfloat16 and float64 become float32.
        """
        self.in_float32 = in_float32
        self.node, self.operands, self.opset, self.values = node, list(operands), opset, values
        name = next((value.name for value in node.outputs if value.name), node.name or node.op_type)
        self.op = Builder(graph, prefix=f"{name}/")

    # ---- operands and attributes -----------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Whether the node has an operand.

        Args:
            index: Its number.

        Returns:
            False if it is absent.
        """
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int = 0) -> ir.Value:
        """Return an operand.

        Args:
            index: Its number.

        Returns:
            The raised value.

        Raises:
            NotRaised: It is absent.
        """
        value = self.operands[index] if index < len(self.operands) else None
        if value is None:
            self.refuse(f"operand {index} is absent")
        return value

    def array(self, index: int) -> np.ndarray:
        """Return the numbers of a constant operand.

        Args:
            index: Its number.

        Returns:
            The numbers.

        Raises:
            NotRaised: It is absent or not constant.
        """
        array = constant_array(self.operand(index))
        if array is None:
            self.refuse(f"operand {index} ({self.operand(index).name}) is not constant")
        return array

    def ints(self, index: int) -> list[int]:
        """Return the integers of a constant operand, flattened.

        Args:
            index: Its number.

        Returns:
            The integers.

        Raises:
            NotRaised: It is absent or not constant.
        """
        return [int(number) for number in self.array(index).reshape(-1)]

    def ints_of(self, name: str, index: int) -> list[int] | None:
        """Return integers that older opsets have as an attribute, and newer ones as an operand.

        Args:
            name: The attribute.
            index: The number of the operand.

        Returns:
            The integers; None if both are absent.

        Raises:
            NotRaised: The operand is not constant.
        """
        if name in self.node.attributes:
            numbers = self.get(name)
            return [int(number) for number in (numbers if isinstance(numbers, Sequence) else [numbers])]
        return self.ints(index) if self.has(index) else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute.

        Args:
            name: Its name.
            default: The result if the node has none.

        Returns:
            Its value.
        """
        return attribute(self.node, name, default)

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis, counted from the front.

        Args:
            axis: The axis; negative to count from the end.
            rank: The number of axes.

        Returns:
            The axis, 0 or more.

        Raises:
            NotRaised: There is no such axis.
        """
        if not -rank <= axis < rank:
            self.refuse(f"axis {axis} is out of range for {rank} axes")
        return axis % rank

    def refuse(self, reason: str) -> NoReturn:
        """Give the node up.

        Args:
            reason: What has no counterpart.

        Raises:
            NotRaised: Always.
        """
        raise NotRaised(reason)

    # ---- results ---------------------------------------------------------------------------------------

    def emit(
        self,
        op_type: str,
        *operands: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> ir.Value:
        """Insert a builtin operator.

        Args:
            op_type: The operator.
            *operands: Its operands; None for one that is absent.
            dtype: The dtype of the result. None: as the first operand.
            shape: The shape of the result. None: it is inferred.
            name: The name of the result. None: the operator in lower case.
            **options: Options that differ from their defaults.

        Returns:
            The result.

        Raises:
            NotRaised: The operands do not fit together.
        """
        return self.emit_all(
            op_type, operands, 1, dtype, None if shape is None else [shape], name, **options
        )[0]

    def emit_all(
        self,
        op_type: str,
        operands: Sequence[ir.Value | None],
        count: int,
        dtype: ir.DataType | Sequence[ir.DataType | None] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> list[ir.Value]:
        """Insert a builtin operator with several results.

        Args:
            op_type: See `emit`.
            operands: See `emit`.
            count: The number of results.
            dtype: One for all results, or one for each.
            shapes: The shapes of the results. None: they are inferred.
            name: See `emit`.
            **options: See `emit`.

        Returns:
            The results.

        Raises:
            NotRaised: The operands do not fit together.
        """
        dtypes = list(dtype) if isinstance(dtype, Sequence) else [dtype] * count
        dtypes = [self._kind(each) for each in dtypes]
        first = self.op.node(op_type, operands, (), dtypes[0], name, **options)
        node = first.producer()
        assert node is not None
        node.resize_outputs(count)
        for value, kind in zip(node.outputs[1:], dtypes[1:], strict=True):
            like = self.op.result(op_type, operands, (), kind, name)
            value.name, value.shape, value.type = like.name, like.shape, like.type
        if shapes is None:
            shapes = self._inferred(node)
        for value, shape in zip(node.outputs, shapes, strict=True):
            value.shape = ir.Shape(shape)
        return list(node.outputs)

    def _kind(self, dtype: ir.DataType | None) -> ir.DataType | None:
        return FLOAT if self.in_float32 and dtype in OTHER_FLOATS else dtype

    def _inferred(self, node: ir.Node) -> list[Sequence[int]]:
        try:
            shapes = infer_shapes(node)
        except Mismatch as error:
            self.refuse(str(error))
        if shapes is None or any(shape is None for shape in shapes):
            self.refuse(f"the shape of its {node.op_type} depends on computed numbers")
        return [shape for shape in shapes if shape is not None]

    def constant(self, numbers: Any, name: str, dtype: Any = None) -> ir.Value:
        """Add a constant.

        Args:
            numbers: Its numbers.
            name: Its name, after the name of the node's result.
            dtype: Its numpy dtype, or None for that of `numbers`.

        Returns:
            The constant.
        """
        return self.op.constant(numbers, name, dtype)

    @staticmethod
    def dtype_code(dtype: ir.DataType) -> int:
        """Return the number of a dtype in an option of an operator.

        Args:
            dtype: The dtype.

        Returns:
            Its number in Circle's schema.
        """
        return CIRCLE.dtype_codes[dtype]

    def like(self, number: float, x: ir.Value, name: str = "number") -> ir.Value:
        """Add a scalar constant of the dtype of a value.

        Args:
            number: The number.
            x: The value.
            name: The name of the constant.

        Returns:
            The constant, of shape [].
        """
        assert x.dtype is not None
        return self.constant(number, name, x.dtype.numpy())

    def indices(self, numbers: int | Sequence[int], name: str) -> ir.Value:
        """Add a constant of int32: a shape, axes, bounds.

        Args:
            numbers: One number or several.
            name: Its name.

        Returns:
            The constant.
        """
        return self.constant(np.asarray(numbers, np.int32), name)

    def cast(self, x: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """Convert a value to another dtype.

        Args:
            x: The value.
            dtype: The dtype; None for any.

        Returns:
            The converted value; `x` itself if nothing changes.
        """
        dtype = self._kind(dtype)
        if dtype is None or x.dtype == dtype:
            return x
        for kind in (x.dtype, dtype):
            if kind not in CIRCLE.dtype_codes:
                self.refuse(f"Circle has no {kind}")
        array = constant_array(x)
        if array is not None and array.size <= SMALL:
            return self.constant(array.astype(dtype.numpy()), "constant")
        return self.op.cast(x, dtype, "cast")

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Give a value another shape.

        Args:
            x: The value.
            shape: The shape.

        Returns:
            The value of that shape; `x` itself if it has it.
        """
        if (inner := producer_of(x, "RESHAPE")) is not None and inner.inputs[0] is not None:
            x = inner.inputs[0]
        return self.op.reshape(x, [int(dim) for dim in shape], "reshape")

    def transpose(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Permute the axes of a value.

        Args:
            x: The value.
            axes: Axis i of the result is axis `axes[i]` of `x`.

        Returns:
            The value; `x` itself if nothing moves.
        """
        inner = producer_of(x, "TRANSPOSE")
        before = constant_ints(inner.inputs[1]) if inner is not None else None
        if inner is not None and before is not None and inner.inputs[0] is not None:
            x, axes = inner.inputs[0], [before[axis] for axis in axes]
        return self.op.transpose(x, [int(axis) for axis in axes], "transpose")

    def broadcast(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Repeat a value along axes of size 1.

        Args:
            x: The value.
            shape: The shape of the result.

        Returns:
            The value; `x` itself if it has the shape.
        """
        if shape_of(x) == tuple(shape):
            return x
        return self.emit("BROADCAST_TO", x, self.indices(list(shape), "shape"))


SMALL = 1 << 14
"""Elements of a constant that is converted at once instead of by an operator."""

Rule = Callable[[Operation], "ir.Value | Sequence[ir.Value | None]"]
"""Raises one operator: returns its results. Those that are None or not there stay unraised."""

Rules = dict[str, Rule]
"""The rules of one domain by operator."""


def is_builtin(node: ir.Node) -> bool:
    """Whether a node of a raised graph is raised.

    Args:
        node: A node of a raised graph.

    Returns:
        False for an ONNX node that stayed.
    """
    return node.domain in (DOMAIN, CUSTOM_DOMAIN)
