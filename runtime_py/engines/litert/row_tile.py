"""Row tile: the number of rows that XNNPACK's kernel for matrix products computes at once.

A run of T tokens multiplies T rows with each weight. The kernel takes the rows in tiles. A tile that is not
full takes as long as a full one. So one more row is almost free within a tile, and costly where another tile
begins. Tiles have 3 to 16 rows, by the processor and the dtype of the weights. So they are measured, with
weights of the model.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from o2o.cli.silence_stderr import silenced_stderr
from o2o.formats import dumps
from o2o.formats.tensors import is_constant
from o2o.model import Model, Signature, quantization_constants, shape_of
from o2o.operators.traits import traits_of
from o2o.rewriting.builder import Builder
from runtime_py.engines.litert.compiled_model import RefusedByLiteRt, compile_model

DEFAULT_TILE = 4
"""The row tile where none is seen."""
ROWS = range(2, 10)
"""Numbers of rows that are measured."""
SMALLEST, LARGEST = 1 << 15, 1 << 22
"""Weights of matrices that are measured: with fewer, other work takes the time; with more, memory does."""
REPEATS = 15
"""Runs of each number of rows, of which the shortest counts."""
STEP = 1.25
"""The time of one more row relative to that without it, at least, where another tile begins."""


def draft_lengths(model: Model) -> tuple[int, ...]:
    """Choose the numbers of tokens of the runs that verify drafts.

    Args:
        model: A Circle or TFLite model.

    Returns:
        Three ascending numbers T. The rows of each fill tiles, or half a tile of 8.
    """
    first = row_tile(model)
    if first == max(ROWS) - 1:
        first //= 2
    return first, 2 * first, 4 * first


def row_tile(model: Model) -> int:
    """Measure the row tile.

    Args:
        model: A Circle or TFLite model.

    Returns:
        The number of rows; `DEFAULT_TILE` where no step is seen.
    """
    weights = _typical_weights(model)
    if weights is None:
        return DEFAULT_TILE
    try:
        with silenced_stderr():
            seconds = _measure(dumps(_products(weights)))
    except RefusedByLiteRt:
        return DEFAULT_TILE
    return first_step(seconds) or DEFAULT_TILE


def first_step(seconds: Mapping[int, float]) -> int:
    """Find the number of rows behind which another tile begins.

    Args:
        seconds: The time of a product, by its consecutive numbers of rows.

    Returns:
        The number of rows; 0 if the time rises nowhere by `STEP`.
    """
    steps = {rows: seconds[rows + 1] / seconds[rows] for rows in seconds if rows + 1 in seconds}
    rows = max(steps, key=lambda rows: steps[rows])
    return rows if steps[rows] >= STEP else 0


def _typical_weights(model: Model) -> ir.Value | None:
    """The smallest matrix that is worth measuring, of the dtype that most weights have."""
    matrices = [*_matrices(model)]
    numbers: Counter[ir.DataType | None] = Counter()
    for matrix in matrices:
        numbers[matrix.dtype] += _size(matrix)
    usual = numbers.most_common(1)[0][0] if numbers else None
    fitting = (matrix for matrix in matrices if SMALLEST <= _size(matrix) <= LARGEST)
    return min((matrix for matrix in fitting if matrix.dtype == usual), key=_size, default=None)


def _matrices(model: Model) -> Iterator[ir.Value]:
    """The constant matrices of products."""
    for node in model.graphs[0] if model.graphs else ():
        traits = traits_of(node)
        for operand in traits.weights if traits.table is None else ():
            weights = node.inputs[operand] if operand < len(node.inputs) else None
            if weights is not None and is_constant(weights) and len(shape_of(weights)) == 2:
                yield weights


def _size(matrix: ir.Value) -> int:
    return math.prod(shape_of(matrix))


def _products(weights: ir.Value) -> Model:
    """A TFLite model with a signature for each number of rows: their product with a matrix."""
    model = Model("tflite", [])
    outputs, columns = shape_of(weights)
    for rows in ROWS:
        graph = ir.Graph([], [], nodes=[], name=f"rows_{rows}")
        x = ir.Value(name="x", shape=ir.Shape([rows, columns]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(x)
        operands = [x, _copied(weights, graph), None]
        y = Builder(graph).node("FULLY_CONNECTED", operands, [rows, outputs], keepNumDims=True)
        graph.outputs.append(y)
        model.graphs.append(graph)
        model.signatures.append(Signature(f"rows_{rows}", graph, {"x": x}, {"y": y}))
    return model


def _copied(value: ir.Value, graph: ir.Graph) -> ir.Value:
    """A constant of another graph, with the constants that scale it."""
    copy = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
    copy.meta.update(value.meta)
    if constants := quantization_constants(value):
        copies = {key: _copied(constant, graph) for key, constant in constants.items()}
        copy.meta["quantization_constants"] = copies
    graph.register_initializer(copy)
    return copy


def _measure(model: bytes) -> dict[int, float]:
    """Seconds by the number of rows: the least of several runs, in turns."""
    compiled = compile_model(model, None, threads=1)
    try:
        runs = {}
        for rows in ROWS:
            index = compiled.get_signature_index(f"rows_{rows}")
            runs[rows] = index, compiled.create_input_buffers(index), compiled.create_output_buffers(index)
        seconds = dict.fromkeys(ROWS, math.inf)
        for _ in range(REPEATS):
            for rows, (index, inputs, outputs) in runs.items():
                begin = time.perf_counter()
                compiled.run_by_index(index, inputs, outputs)
                seconds[rows] = min(seconds[rows], time.perf_counter() - begin)
        return seconds
    except RuntimeError as error:
        raise RefusedByLiteRt.from_error(error) from error
    finally:
        compiled.close()
