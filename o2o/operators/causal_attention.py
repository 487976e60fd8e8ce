"""The custom operator `o2o.causal_attention`: causal attention to keys and values that are already cached.

    inputs    q [1, N, T, H], k [1, K, S, H], v [1, K, S, H], position int32 or int64 [1]
    output    [1, T, N, H]: softmax(scale q k') v; query t sees the keys 0 to position + t
    options   FlexBuffer {"scale": float, "q_block": int, "kv_block": int}; a block size of 0: no blocks

Query head n reads key head n // (N / K). `export --attn-implementation grouped` and `flash` write it for each
call of transformers' attention interface. `o2o.lower.litert` lowers it to builtin operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import shape_of

NAME = "o2o.causal_attention"
POSITION = 3  # operand position


@dataclass(frozen=True)
class FlashBlockSizes:
    """Block sizes of flash attention: the number of queries, and of keys, that are computed at a time."""

    q: int
    kv: int

    @classmethod
    def parse(cls, text: str) -> FlashBlockSizes:
        """Parse `64,512`.

        Args:
            text: Two positive integers.

        Returns:
            The block sizes.

        Raises:
            ValueError: `text` is something else; the message is for a user.
        """
        try:
            q, kv = (int(size) for size in text.split(","))
        except ValueError:
            raise ValueError("give two block sizes, such as 64,512") from None
        if min(q, kv) < 1:
            raise ValueError("a block has at least one query and one key")
        return cls(q, kv)


def adaptive_blocks(tokens: int, kv: int = 512) -> FlashBlockSizes:
    """Return the default block sizes.

    Args:
        tokens: The number of queries T. More queries get larger blocks.
        kv: The number of keys of a block.

    Returns:
        The block sizes.
    """
    return FlashBlockSizes(32 if tokens < 192 else 64 if tokens < 768 else 256, kv)


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Return the operands of a node.

    Args:
        node: An `o2o.causal_attention`.

    Returns:
        q, k, v and position.

    Raises:
        ModelError: Their shapes differ from the module's docstring.
    """
    shapes = [shape_of(value) if value is not None else None for value in node.inputs]
    match shapes:
        case [(1, N, _, H), (1, K, _, width), v, (*_,)] if v == shapes[1] and width == H and N % K == 0:
            return tuple(node.inputs)  # type: ignore[return-value]
    actual = ", ".join("nothing" if shape is None else str(list(shape)) for shape in shapes)
    raise ModelError(
        f"{NAME} {node.outputs[0].name} takes {actual}, not q [1, N, T, H], k and v [1, K, S, H] "
        "(K divides N), and a position"
    )


def encode_options(scale: float, blocks: FlashBlockSizes | None) -> bytes:
    """Encode the operator's options.

    Args:
        scale: The factor of q k'.
        blocks: Block sizes, or None for no blocks.

    Returns:
        The FlexBuffer.
    """
    from flatbuffers import flexbuffers

    q, kv = (blocks.q, blocks.kv) if blocks else (0, 0)
    return bytes(flexbuffers.Dumps({"scale": float(scale), "q_block": q, "kv_block": kv}))


def decode_options(node: ir.Node) -> tuple[float, FlashBlockSizes | None]:
    """Decode the operator's options.

    Args:
        node: An `o2o.causal_attention`.

    Returns:
        The scale, and the block sizes or None.

    Raises:
        ModelError: The options are absent or damaged.
    """
    from flatbuffers import flexbuffers

    try:
        options = flexbuffers.Loads(bytes(node.meta["fields"]["customOptions"]))
        blocks = FlashBlockSizes(int(options["q_block"]), int(options["kv_block"]))
        if min(blocks.q, blocks.kv) < 0:
            raise ValueError(f"blocks of {blocks.q} by {blocks.kv}")
        return float(options["scale"]), blocks if blocks.q and blocks.kv else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"{NAME} {node.outputs[0].name} has damaged options: {error!r}") from error
