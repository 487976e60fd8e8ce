"""The custom operator `o2o.causal_attention`: attention of queries to keys and values that are there already.

    inputs    q [1, N, T, H], k [1, K, S, H], v [1, K, S, H], position int32 or int64 [1]
    output    [1, T, N, H]: softmax(scale q k') v, in which query t sees the keys 0 to position + t
    options   FlexBuffer {"scale": float, "q_block": int, "kv_block": int}; blocks of 0: all at a time

Query head n reads key head n / (N / K). Exports of `--attn-implementation grouped` and `flash` hold it
wherever a model goes through transformers' attention interface; `o2o.lower.litert.lowering` spells it in
builtins.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import shape_of

NAME = "o2o.causal_attention"
POSITION = 3  # the number of that operand


@dataclass(frozen=True)
class Blocks:
    """Flash attention: how many queries, and how many keys, are computed at a time."""

    q: int
    kv: int

    @classmethod
    def parse(cls, text: str) -> Blocks:
        """`64,512`. Raises ValueError, with what is wrong."""
        try:
            q, kv = (int(size) for size in text.split(","))
        except ValueError:
            raise ValueError("give two block sizes, such as 64,512") from None
        if min(q, kv) < 1:
            raise ValueError("a block has at least one query and one key")
        return cls(q, kv)


def adaptive_blocks(tokens: int, kv: int = 512) -> Blocks:
    """The blocks that suit T = `tokens` queries: more at a time, the more there are."""
    return Blocks(32 if tokens < 192 else 64 if tokens < 768 else 256, kv)


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """q, k, v and position of `node`. Raises ModelError where they are not as said above."""
    shapes = [shape_of(value) if value is not None else None for value in node.inputs]
    match shapes:
        case [(1, N, _, H), (1, K, _, width), v, (*_,)] if v == shapes[1] and width == H and N % K == 0:
            return tuple(node.inputs)  # type: ignore[return-value]
    told = ", ".join("nothing" if shape is None else str(list(shape)) for shape in shapes)
    raise ModelError(
        f"{NAME} {node.outputs[0].name} takes {told}, not q [1, N, T, H], k and v [1, K, S, H], of which K "
        "divides N, and a position"
    )


def pack(scale: float, blocks: Blocks | None) -> bytes:
    """The operator's options."""
    from flatbuffers import flexbuffers

    q, kv = (blocks.q, blocks.kv) if blocks else (0, 0)
    return bytes(flexbuffers.Dumps({"scale": float(scale), "q_block": q, "kv_block": kv}))


def unpack(node: ir.Node) -> tuple[float, Blocks | None]:
    """The scale and the blocks of `node`. Raises ModelError for options that are not there or damaged."""
    from flatbuffers import flexbuffers

    try:
        told = flexbuffers.Loads(bytes(node.meta["fields"]["customOptions"]))
        blocks = Blocks(int(told["q_block"]), int(told["kv_block"]))
        if min(blocks.q, blocks.kv) < 0:
            raise ValueError(f"blocks of {blocks.q} by {blocks.kv}")
        return float(told["scale"]), blocks if blocks.q and blocks.kv else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"{NAME} {node.outputs[0].name} has damaged options: {error!r}") from error
