"""The operators that torch lacks and Circle has: for torch, for torch.export, and for TICO."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from circle_schema import circle
from tico.serialize.operators.node_visitor import NodeVisitor, register_node_visitor
from tico.serialize.operators.utils import create_builtin_operator, get_op_index


@torch.library.custom_op("o2o::dynamic_update_slice", mutates_args=())
def dynamic_update_slice(operand: torch.Tensor, update: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """A copy of `operand` with `update` written over it, its first element at index `start`.

    operand, update: the same rank R and dtype, `update` nowhere larger. start: int32 [R], clamped (as the
    runtimes do) so that `update` fits.
    """
    result = operand.clone()
    window = []
    for first, whole, part in zip(start.tolist(), operand.shape, update.shape, strict=True):
        first = min(max(first, 0), whole - part)
        window.append(slice(first, first + part))
    result[tuple(window)] = update
    return result


@dynamic_update_slice.register_fake
def _(operand: torch.Tensor, update: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(operand)


@register_node_visitor
class DynamicUpdateSliceVisitor(NodeVisitor):
    """o2o::dynamic_update_slice as Circle's DYNAMIC_UPDATE_SLICE."""

    target: ClassVar = [torch.ops.o2o.dynamic_update_slice.default]

    def define_node(self, node: torch.fx.Node) -> Any:
        code = get_op_index(circle.BuiltinOperator.BuiltinOperator.DYNAMIC_UPDATE_SLICE, self._op_codes)
        operator = create_builtin_operator(self.graph, code, list(node.args), [node])
        operator.builtinOptionsType = circle.BuiltinOptions.BuiltinOptions.DynamicUpdateSliceOptions
        operator.builtinOptions = circle.DynamicUpdateSliceOptions.DynamicUpdateSliceOptionsT()
        return operator
