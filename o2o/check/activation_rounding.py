"""Rounded activations, as kernels of int8 weights round them, in a float model: their effect on results.

Such a kernel rounds each row of activations to multiples of its largest number, divided by 127. Where a sum
of large terms is small, the effect is a large share of the result. So no constant bounds it: it is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from o2o.check.runner import Arrays, Runner
from o2o.errors import ModelError
from o2o.model import shape_of
from o2o.rewriting.builder import Builder

LIMIT = 127.0
"""The integer that stands for the largest number of a row."""
SMALLEST = 1e-20
JITTER = 1e-2
"""Relative change of the inputs, with which activations are rounded anew."""
DRAWS = 4
FACTOR = 3.0
"""How often the measured effect an error may be: kernels differ in how they round."""
LARGEST_SHARE = 0.5
"""The largest effect, as a share of an output, beside which a defect is still seen."""


def round_activations(graph: ir.Graph, weights: Collection[str]) -> None:
    """Round the activations that FULLY_CONNECTED multiplies with some weights.

    Args:
        graph: The graph, changed in place.
        weights: Names of constants, which a DEQUANTIZE may follow.
    """
    for node in list(graph):
        x, weight = (*node.inputs[:2], None, None)[:2]
        if node.op_type != "FULLY_CONNECTED" or x is None or weight is None or x.dtype != ir.DataType.FLOAT:
            continue
        producer = weight.producer()
        source = weight if producer is None or producer.op_type != "DEQUANTIZE" else producer.inputs[0]
        if source is None or source.name not in weights:
            continue
        op = Builder(graph, before=node, prefix=f"{node.outputs[0].name}/")
        rows = [*shape_of(x)[:-1], 1]
        axis = op.constant([-1], "axis", np.int32)
        largest = op.node("REDUCE_MAX", [op.node("ABS", [x], shape_of(x)), axis], rows, keepDims=True)
        largest = op.node("MAXIMUM", [largest, op.constant(SMALLEST, "smallest", np.float32)], rows)
        step = op.node("MUL", [largest, op.constant(1 / LIMIT, "share", np.float32)], rows)
        steps = op.node("ROUND", [op.node("DIV", [x, step], shape_of(x))], shape_of(x))
        node.replace_input_with(0, op.node("MUL", [steps, step], shape_of(x)))


def is_explained(
    plain: Runner, rounding: Runner, signature: str, output: str, feeds: Arrays, error: np.ndarray
) -> bool:
    """Whether an error of an output is as large as the effect of rounded activations.

    Args:
        plain: A float model.
        rounding: The same model after `round_activations`.
        signature: The signature.
        output: An output of it.
        feeds: Its inputs.
        error: The error, in the shape of the output.

    Returns:
        False too if the effect is so large that it hides defects, or if the model cannot be run.
    """
    effects, results = [], []
    try:
        for inputs in _draws(feeds):
            results.append(plain.run(signature, inputs).outputs[output].astype(np.float64))
            effects.append(rounding.run(signature, inputs).outputs[output] - results[-1])
    except ModelError:
        return False
    effect, largest = _rms(np.stack(effects)), np.abs(effects).max(initial=0)
    if not effect <= LARGEST_SHARE * _rms(np.stack(results)):
        return False
    return bool(_rms(error) <= FACTOR * effect and np.abs(error).max(initial=0) <= FACTOR * largest)


def _draws(feeds: Arrays) -> Iterator[Arrays]:
    yield feeds
    generator = np.random.default_rng(0)
    for _ in range(1, DRAWS):
        yield {
            name: (x * (1 + JITTER * generator.standard_normal(x.shape))).astype(x.dtype)
            if x.dtype.kind == "f"
            else x
            for name, x in feeds.items()
        }


def _rms(numbers: np.ndarray) -> float:
    return float(np.sqrt(np.square(numbers, dtype=np.float64).mean())) if numbers.size else 0.0
