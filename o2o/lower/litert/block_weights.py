"""Weights in blocks, as XNNPACK takes them: int4, positive float16 scales, blocks of whole multiples of 32.

Other Circle weights in blocks become sums of such products, which are the same numbers:

    int8            q = 16 high + low + 8, both in 4 bits
    negative scale  s q = |s| ~q + |s|, where ~q = -q - 1 inverts the bits
    short blocks    padded with zeros, and so is x

The number that a block adds to each of its weights becomes a product with the sums of the blocks of x. Scales
are rounded to bfloat16, with which XNNPACK computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from o2o.formats.quantization_parameters import set_block_quantization
from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, constant_array, storage_key
from o2o.model import Model, attribute, quantization_constants, shape_of
from o2o.rewriting.builder import Builder, add_constant, add_tensor
from o2o.rewriting.rewire import replace_output

GROUP = 32
"""Blocks of XNNPACK are multiples of this."""
_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class _Part:
    """One product of a sum: which 4 bits of the integers, and by which factor their scales are larger."""

    name: str
    factor: int


_WHOLE = (_Part("", 1),)
_HALVES = (_Part("high", 16), _Part("low", 1))


class Blocks4Bit(StreamedTensor):
    """An int4 matrix [rows, columns]: 4 bits of each integer, inverted in some blocks, in padded blocks."""

    def __init__(
        self,
        source: ir.TensorProtocol,
        part: str,
        block: int,
        padded: int,
        inverted: np.ndarray,
        dtype: ir.DataType = ir.DataType.INT4,
    ) -> None:
        """Take a part of a matrix.

        Args:
            source: int4, or int8, [rows, columns].
            part: `high` or `low` for int8; empty for int4.
            block: Columns of a block.
            padded: Columns of a block of the result.
            inverted: Which blocks have inverted bits, bool [rows, blocks].
            dtype: int4; or uint8 for the same bytes, [rows, bytes of a row].
        """
        rows, blocks = inverted.shape
        columns = blocks * padded * 4 // dtype.bitwidth
        super().__init__(dtype, (rows, columns), source.name, [source])
        self.part, self.block, self.padded, self.inverted = part, block, padded, inverted

    @property
    def key(self) -> Hashable:
        if not self.part and self.padded == self.block and not self.inverted.any():
            return storage_key(self.parts[0])
        of = self.part, self.block, self.padded, self.inverted.tobytes()
        return type(self), of, storage_key(self.parts[0])

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        blocks = self.inverted.shape[1]
        row_bytes = blocks * self.block * self.parts[0].dtype.bitwidth // 8
        step, start = max(1, size // row_bytes), 0
        for chunk in chunks(self.parts[0], step * row_bytes):
            data = np.frombuffer(chunk, np.uint8)
            for first in range(0, len(data), step * row_bytes):
                stored = data[first : first + step * row_bytes].reshape(-1, blocks, row_bytes // blocks)
                yield self._converted(stored, self.inverted[start : start + len(stored)])
                start += len(stored)

    def _converted(self, stored: np.ndarray, inverted: np.ndarray) -> bytes:
        if self.part:
            nibbles = stored >> 4 if self.part == "high" else (stored & 15) ^ 8
            stored = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        result = stored ^ np.where(inverted, np.uint8(255), np.uint8(0))[..., None]
        if self.padded > self.block:
            result = np.pad(result, ((0, 0), (0, 0), (0, (self.padded - self.block) // 2)))
        return result.tobytes()


def lower_block_weights(model: Model, graph: ir.Graph) -> int:
    """Replace products with weights in blocks that XNNPACK does not take.

    Args:
        model: The model of `graph`.
        graph: Changed in place.

    Returns:
        The number of products replaced.
    """
    return lower_each(model, graph, "FULLY_CONNECTED", _lower)


def lower_each(
    model: Model, graph: ir.Graph, op_type: str, lower: Callable[[Model, ir.Graph, ir.Node], None]
) -> int:
    """Replace operators whose weights are in blocks that LiteRT does not take.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        op_type: The operators.
        lower: Adds other operators in front of one, and takes its uses away.

    Returns:
        The number of operators replaced.
    """
    nodes = [node for node in graph if node.op_type == op_type and has_other_blocks(node)]
    for node in nodes:
        lower(model, graph, node)
        graph.remove(node, safe=True)
    return len(nodes)


def has_other_blocks(node: ir.Node) -> bool:
    """Whether a node has weights in blocks that LiteRT does not take.

    Args:
        node: Any node.

    Returns:
        True for a product that XNNPACK refuses, and for a lookup in any blocks.
    """
    if node.op_type not in ("FULLY_CONNECTED", "EMBEDDING_LOOKUP") or len(node.inputs) < 2:
        return False
    weights = node.inputs[1]
    scales = quantization_constants(weights).get("scales") if weights is not None else None
    if weights is None or scales is None:
        return False
    if node.op_type == "EMBEDDING_LOOKUP":
        return True
    is_native = weights.dtype == ir.DataType.INT4 and scales.dtype == ir.DataType.FLOAT16
    return not is_native or block_of(weights) % GROUP != 0


def block_of(weights: ir.Value) -> int:
    """Return the size of the blocks of a matrix.

    Args:
        weights: A constant in blocks.

    Returns:
        The number of columns that share a scale.
    """
    return int(weights.meta["fields"]["quantization"].details.blockSize)


def scales_of(weights: ir.Value) -> np.ndarray:
    """Return the scales of a matrix.

    Args:
        weights: A constant in blocks, [rows, columns].

    Returns:
        float32 [rows, blocks of a row].
    """
    scales = constant_array(quantization_constants(weights)["scales"])
    assert scales is not None
    rows, columns = shape_of(weights)[-2:]
    return scales.astype(np.float32).reshape(rows, columns // block_of(weights))


def _lower(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    x, weights, bias = [*node.inputs, None][:3]
    assert x is not None
    assert weights is not None
    old, block = node.outputs[0], block_of(weights)
    scales, columns = scales_of(weights), shape_of(weights)[-1]
    padded = math.ceil(block / GROUP) * GROUP
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    blocks = op.reshape(x, [*shape_of(x)[:-1], columns // block, block], name="blocks")
    wide = _padded(op, x, blocks, padded)
    is_8_bit = weights.dtype == ir.DataType.INT8
    shift = (8 * scales if is_8_bit else np.zeros_like(scales)) + 0
    options = {"keepNumDims": True, "weightsFormat": attribute(node, "weightsFormat", 0)}
    terms: list[ir.Value] = []
    for part in _HALVES if is_8_bit else _WHOLE:
        of_part = scales * np.float32(part.factor)
        shift += np.where(of_part < 0, -of_part, 0)
        own = _constant(model, graph, weights, part.name, block, padded, of_part)
        added = bias if not terms else None
        terms.append(op.node("FULLY_CONNECTED", [wide, own, added], shape_of(old), name="product", **options))
    if shift.any():
        axis = op.constant([len(shape_of(blocks)) - 1], "axis", np.int32)
        sums = op.node("SUM", [blocks, axis], shape_of(blocks)[:-1], name="sums_of_blocks", keepDims=False)
        table = _shift(graph, weights, shift)
        terms.append(op.node("FULLY_CONNECTED", [sums, table, None], shape_of(old), name="shift", **options))
    activation = attribute(node, "fusedActivationFunction", 0)
    result = terms[0]
    for number, term in enumerate(terms[1:], 2):
        last = {"fusedActivationFunction": activation} if number == len(terms) else {}
        result = op.node("ADD", [result, term], shape_of(old), name="sum", **last)
    if len(terms) == 1 and activation:
        producer = result.producer()
        assert producer is not None
        producer.attributes["fusedActivationFunction"] = ir.AttrInt64("fusedActivationFunction", activation)
    replace_output(model, old, result)


def _padded(op: Builder, x: ir.Value, blocks: ir.Value, padded: int) -> ir.Value:
    """x with zeros behind each block; x itself if the blocks are long enough."""
    shape = shape_of(blocks)
    missing = padded - shape[-1]
    if not missing:
        return x
    zeros = op.constant(np.zeros([*shape[:-1], missing]), "zeros", np.float32)
    wide = op.node("CONCATENATION", [blocks, zeros], [*shape[:-1], padded], name="wide", axis=len(shape) - 1)
    return op.reshape(wide, [*shape[:-2], shape[-2] * padded], name="wide")


def _constant(
    model: Model, graph: ir.Graph, weights: ir.Value, part: str, block: int, padded: int, scales: np.ndarray
) -> ir.Value:
    """The int4 constant of a part, with positive scales; one for all products of the graph."""
    known = graph.meta.setdefault("block_weights", {})
    if (weights, part) not in known:
        assert weights.const_value is not None
        tensor = Blocks4Bit(weights.const_value, part, block, padded, scales < 0)
        value = add_tensor(graph, tensor, f"{weights.name}{f'_{part}' if part else ''}")
        half = add_constant(graph, rounded_scales(np.abs(scales)), f"{value.name}_scales")
        set_block_quantization(value, half, padded, model.format)
        known[weights, part] = value
    value = known[weights, part]
    assert isinstance(value, ir.Value)
    return value


def _shift(graph: ir.Graph, weights: ir.Value, shift: np.ndarray) -> ir.Value:
    known = graph.meta.setdefault("block_weights", {})
    if (weights, "shift") not in known:
        known[weights, "shift"] = add_constant(graph, shift.astype(np.float32), f"{weights.name}_shift")
    value = known[weights, "shift"]
    assert isinstance(value, ir.Value)
    return value


def rounded_scales(scales: np.ndarray) -> np.ndarray:
    """Round scales to bfloat16, with which XNNPACK computes. The file stores float16.

    Args:
        scales: Positive numbers, float32.

    Returns:
        float16.
    """
    largest = float(ml_dtypes.bfloat16(65280))
    half = np.minimum(scales, largest).astype(ml_dtypes.bfloat16).astype(np.float16)
    return np.maximum(half, _HALF.smallest_subnormal)
