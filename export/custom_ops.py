"""Operators that Circle has and torch lacks, defined for torch, torch.export and TICO."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from circle_schema import circle
from tico.serialize.operators.node_visitor import NodeVisitor, register_node_visitor
from tico.serialize.operators.utils import create_builtin_opcode, create_builtin_operator, get_op_index

from export.flash_attention import attend, flash_attend
from o2o.operators.causal_attention import NAME, FlashBlockSizes, encode_options


@torch.library.custom_op("o2o::dynamic_update_slice", mutates_args=())
def dynamic_update_slice(operand: torch.Tensor, update: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Write a block into a tensor.

    Args:
        operand: Any tensor of rank R.
        update: The block, of the same rank and dtype, and no larger on any axis.
        start: int32 [R]. The index of its first element, clamped so that the block fits, as in runtimes.

    Returns:
        A copy of `operand` with the block in it.
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
    """Writes o2o::dynamic_update_slice as Circle's DYNAMIC_UPDATE_SLICE."""

    target: ClassVar = [torch.ops.o2o.dynamic_update_slice.default]

    def define_node(self, node: torch.fx.Node) -> Any:
        code = get_op_index(circle.BuiltinOperator.BuiltinOperator.DYNAMIC_UPDATE_SLICE, self._op_codes)
        operator = create_builtin_operator(self.graph, code, list(node.args), [node])
        operator.builtinOptionsType = circle.BuiltinOptions.BuiltinOptions.DynamicUpdateSliceOptions
        operator.builtinOptions = circle.DynamicUpdateSliceOptions.DynamicUpdateSliceOptionsT()
        return operator


@torch.library.custom_op("o2o::causal_attention", mutates_args=())
def causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    q_block: int,
    kv_block: int,
) -> torch.Tensor:
    """Compute causal attention; see `o2o.operators.causal_attention`.

    Args:
        q: [B, N, T, H].
        k: [B, K, S, H].
        v: [B, K, S, H].
        position: int [1]. The position of the first query.
        scale: The factor of the scores.
        q_block: Queries of a block; 0 for all.
        kv_block: Keys of a block; 0 for all.

    Returns:
        [B, T, N, H].
    """
    first = int(position[0])
    if q_block and kv_block:
        return flash_attend(q, k, v, first, scale, q_block, kv_block)
    return attend(q, k, v, first, scale)


@causal_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    q_block: int,
    kv_block: int,
) -> torch.Tensor:
    B, N, T, H = q.shape
    return q.new_empty(B, T, N, H)


@register_node_visitor
class CausalAttentionVisitor(NodeVisitor):
    """Writes o2o::causal_attention as the custom operator of that name."""

    target: ClassVar = [torch.ops.o2o.causal_attention.default]

    def define_node(self, node: torch.fx.Node) -> Any:
        q, k, v, position, scale, q_block, kv_block = node.args
        code = create_builtin_opcode(circle.BuiltinOperator.BuiltinOperator.CUSTOM)
        code.customCode = NAME
        index = self._op_codes.setdefault(code, len(self._op_codes))
        operator = create_builtin_operator(self.graph, index, [q, k, v, position], [node])
        blocks = FlashBlockSizes(q_block, kv_block) if q_block and kv_block else None  # type: ignore[arg-type]
        operator.customOptions = list(encode_options(scale, blocks))  # type: ignore[arg-type]
        return operator
