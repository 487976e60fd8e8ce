"""Operators that Circle has and torch lacks, defined for torch, torch.export and TICO."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from circle_schema import circle
from tico.serialize.operators.node_visitor import NodeVisitor, register_node_visitor
from tico.serialize.operators.utils import create_builtin_opcode, create_builtin_operator, get_op_index

from export.flash_attention import attend
from o2o.operators.core_attention import NAME, FlashBlockSizes, encode_options


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


@torch.library.custom_op("o2o::attention", mutates_args=())
def core_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float = 0.0,
    window: int = 0,
    q_block: int = 0,
    kv_block: int = 0,
) -> torch.Tensor:
    """Compute the core of attention; see `o2o.operators.core_attention`.

    Args:
        q: [B, N, T, H].
        k: [B, K, S, H].
        v: [B, K, S, H].
        position: int [1]. The position of the first query.
        scale: The factor of the scores.
        mask: See `export.flash_attention.attend`, also for the following ones.
        slopes: [N].
        sinks: [N].
        softcap: 0 for none.
        window: 0 for all keys.
        q_block: Queries of a block; 0 for all.
        kv_block: Keys of a block; 0 for all.

    Returns:
        [B, T, N, H].
    """
    optional = {"mask": mask, "slopes": slopes, "sinks": sinks, "softcap": softcap, "window": window}
    return attend(q, k, v, int(position[0]), scale, q_block, kv_block, **optional)  # type: ignore[arg-type]


@core_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float = 0.0,
    window: int = 0,
    q_block: int = 0,
    kv_block: int = 0,
) -> torch.Tensor:
    B, N, T, H = q.shape
    return q.new_empty(B, T, N, H)


@register_node_visitor
class CoreAttentionVisitor(NodeVisitor):
    """Writes o2o::attention as the custom operator of that name."""

    target: ClassVar = [torch.ops.o2o.attention.default]

    def define_node(self, node: torch.fx.Node) -> Any:
        parameters = torch.ops.o2o.attention.default._schema.arguments
        values: dict[str, Any] = {p.name: p.default_value for p in parameters if p.has_default_value()}
        values |= dict(zip((p.name for p in parameters), node.args, strict=False)) | node.kwargs
        operands = [values[name] for name in ("q", "k", "v", "position", "mask", "slopes", "sinks")]
        while operands[-1] is None:
            operands.pop()
        code = create_builtin_opcode(circle.BuiltinOperator.BuiltinOperator.CUSTOM)
        code.customCode = NAME
        index = self._op_codes.setdefault(code, len(self._op_codes))
        operator = create_builtin_operator(self.graph, index, operands, [node])
        blocks = FlashBlockSizes(values["q_block"], values["kv_block"])
        options = encode_options(
            values["scale"], blocks if blocks.q and blocks.kv else None, values["softcap"], values["window"]
        )
        operator.customOptions = list(options)
        return operator
