"""The custom operator `o2o.attention`: dot-product attention with all that decoder families add to it.

    inputs    0 q [1, N, T, H]   1 k [1, K, S, H]   2 v [1, K, S, H]    float32; rotated, normalized, biased
              3 position         int32 or int64 [1]: the position of the first query
              4 mask             optional float32, broadcast to [1, N, T, S], added to the scores
              5 slopes           optional float32 [N] (ALiBi)
              6 sinks            optional float32 [N]
    output    [1, T, N, H]: softmax(scores) v
    options   FlexBuffer {"scale", "softcap": float, "window", "q_block", "kv_block": int}; 0: none

Query head n reads key head n // (N / K). Score of query t, key j and head n:

    scale q k', then softcap * tanh(score / softcap), then + slopes[n] * (j - (position + t)), then + mask

Without a mask, query t sees the keys 0 to position + t; with a window, the last `window` of these. `sinks[n]`
is one more logit in the softmax, without a key and a value. The operator writes no cache:
DYNAMIC_UPDATE_SLICE in front of k and v does. Without caches S = T and position = 0.

Old files name the operator `o2o.causal_attention`: operands 0 to 3, options scale and blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import CUSTOM_DOMAIN, shape_of

NAME = "o2o.attention"
OLD_NAME = "o2o.causal_attention"
NAMES = (NAME, OLD_NAME)
POSITION = 3  # operand position
MASK = 4  # operand mask


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


def is_core_attention(node: ir.Node) -> bool:
    """Whether `node` is `o2o.attention`, or the same operator under its old name.

    Args:
        node: Any node.

    Returns:
        True for the core of attention.
    """
    return node.domain == CUSTOM_DOMAIN and node.op_type in NAMES


@dataclass(frozen=True)
class CoreAttention:
    """The operands and options of one `o2o.attention`. Optional operands are None.

    Attributes:
        q: Queries [1, N, T, H].
        k: Keys [1, K, S, H].
        v: Values [1, K, S, H].
        position: The position of the first query, int32 or int64 [1].
        scale: The factor of q k'.
        mask: Added to the scores, instead of causality and window.
        slopes: ALiBi's slope of each head, [N].
        sinks: One more logit of each head, [N].
        softcap: The bound of the scores; 0 for none.
        window: The number of keys that a query sees at most; 0 for all.
        blocks: The blocks to compute in; None for all at once.
    """

    q: ir.Value
    k: ir.Value
    v: ir.Value
    position: ir.Value
    scale: float
    mask: ir.Value | None = None
    slopes: ir.Value | None = None
    sinks: ir.Value | None = None
    softcap: float = 0.0
    window: int = 0
    blocks: FlashBlockSizes | None = None

    @classmethod
    def of(cls, node: ir.Node) -> CoreAttention:
        """Read a node.

        Args:
            node: An `o2o.attention`, also under its old name.

        Returns:
            Its operands and options.

        Raises:
            ModelError: Shapes differ from the module's docstring, or the options are absent or damaged.
        """
        _check_shapes(node)
        q, k, v, position, mask, slopes, sinks = [*node.inputs, *[None] * 7][:7]
        return cls(q, k, v, position, mask=mask, slopes=slopes, sinks=sinks, **_options(node))  # type: ignore[arg-type]

    @property
    def N(self) -> int:
        return shape_of(self.q)[1]

    @property
    def K(self) -> int:
        return shape_of(self.k)[1]

    @property
    def T(self) -> int:
        return shape_of(self.q)[2]

    @property
    def S(self) -> int:
        return shape_of(self.k)[2]

    @property
    def H(self) -> int:
        return shape_of(self.q)[3]

    @property
    def extras(self) -> list[str]:
        """Parts beyond plain causal attention, in words for messages."""
        named = {
            "a mask": self.mask,
            "ALiBi slopes": self.slopes,
            "attention sinks": self.sinks,
            "a soft-cap": self.softcap or None,
            f"a window of {self.window} keys": self.window or None,
        }
        return [name for name, value in named.items() if value is not None]

    def operands(self) -> list[ir.Value | None]:
        """List the operands in order.

        Returns:
            Four to seven operands, None for each that is absent before the last.
        """
        values = [self.q, self.k, self.v, self.position, self.mask, self.slopes, self.sinks]
        while values[-1] is None:
            values.pop()
        return values

    def options(self) -> bytes:
        """Encode the options.

        Returns:
            The FlexBuffer.
        """
        return encode_options(self.scale, self.blocks, self.softcap, self.window)

    def build(self, name: str) -> ir.Node:
        """Make a node. `o2o.rewriting.builder.Builder.add` inserts it.

        Args:
            name: The name of its result.

        Returns:
            The node, of no graph. Its result is [1, T, N, H].
        """
        shape = ir.Shape((1, self.T, self.N, self.H))
        output = ir.Value(name=name, shape=shape, type=ir.TensorType(self.q.dtype or ir.DataType.FLOAT))
        node = ir.Node(CUSTOM_DOMAIN, NAME, self.operands(), outputs=[output], version=1)
        node.meta["fields"] = {"customOptions": np.frombuffer(self.options(), np.uint8)}
        node.meta["options"] = None
        return node


def _check_shapes(node: ir.Node) -> None:
    shapes = [shape_of(value) if value is not None else None for value in node.inputs]
    match [*shapes, *[None] * 7][: max(7, len(shapes))]:
        case [(1, N, T, H), (1, K, S, width), v, (*_,), mask, slopes, sinks] if (
            v == shapes[1]
            and width == H
            and N % K == 0
            and (mask is None or _broadcasts(mask, (1, N, T, S)))
            and all(vector is None or vector == (N,) for vector in (slopes, sinks))
        ):
            return
    actual = ", ".join("nothing" if shape is None else str(list(shape)) for shape in shapes)
    raise ModelError(
        f"{node.op_type} {node.outputs[0].name} takes {actual}, not q [1, N, T, H], k and v [1, K, S, H], a "
        "position; optional mask [1, N, T, S], slopes [N], sinks [N]; K divides N"
    )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    padded = (1,) * (len(to) - len(shape)) + shape
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))


def encode_options(
    scale: float, blocks: FlashBlockSizes | None = None, softcap: float = 0.0, window: int = 0
) -> bytes:
    """Encode the operator's options.

    Args:
        scale: The factor of q k'.
        blocks: Block sizes, or None for no blocks.
        softcap: The bound of the scores; 0 for none.
        window: The number of keys that a query sees at most; 0 for all.

    Returns:
        The FlexBuffer.
    """
    from flatbuffers import flexbuffers

    q, kv = (blocks.q, blocks.kv) if blocks else (0, 0)
    options = {"scale": float(scale), "q_block": q, "kv_block": kv}
    return bytes(flexbuffers.Dumps({**options, "softcap": float(softcap), "window": window}))


def _options(node: ir.Node) -> dict[str, float | int | FlashBlockSizes | None]:
    """The options by the names of `CoreAttention`'s fields. Raises ModelError."""
    from flatbuffers import flexbuffers

    try:
        options = flexbuffers.Loads(bytes(node.meta["fields"]["customOptions"]))
        blocks = FlashBlockSizes(int(options["q_block"]), int(options["kv_block"]))
        scale, softcap, window = (
            float(options["scale"]),
            float(options.get("softcap", 0.0)),
            int(options.get("window", 0)),
        )
        if min(blocks.q, blocks.kv, softcap, window) < 0 or not np.isfinite([scale, softcap]).all():
            raise ValueError(f"{options}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"{node.op_type} {node.outputs[0].name} has damaged options: {error!r}") from error
    return {
        "scale": scale,
        "softcap": softcap,
        "window": window,
        "blocks": blocks if blocks.q and blocks.kv else None,
    }
