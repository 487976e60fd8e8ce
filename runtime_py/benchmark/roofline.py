"""Roofline of a decode step: its speed if it only read memory.

Decoding one token multiplies each weight with one row of numbers. So a step takes at least the time of
reading the weights and the KV caches from memory (Williams et al. 2009, "Roofline").
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import math
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.formats.tensors import is_constant
from o2o.model import quantization_constants
from o2o.operators.traits import BUILTIN
from runtime_py.child_process import run_module
from runtime_py.model.contract import Contract

BUFFER = 1 << 28
"""Bytes that a measurement reads: more than the caches of a processor hold."""
TRIES = 5
TABLES = {
    **{name: [traits.table] for name, traits in BUILTIN.items() if traits.table is not None},
    "Gather": [0],
    "GatherBlockQuantized": [0, 2, 3],
}
"""Operands from which a decode step reads only a few rows, by lookup operator of Circle and ONNX."""


def bandwidth(threads: int) -> float:
    """Measure the memory bandwidth in a child process.

    Args:
        threads: Number of threads that read.

    Returns:
        Bytes per second, the largest of `TRIES`.
    """
    return float(run_module(__name__, threads))


def measure_bandwidth(threads: int) -> float:
    """Measure the memory bandwidth in this process, which takes `BUFFER` bytes.

    Args:
        threads: Number of threads that read.

    Returns:
        Bytes per second, the largest of `TRIES`.
    """
    parts = np.array_split(np.ones(BUFFER // 8, np.uint64), threads)

    def seconds() -> float:
        readers = [threading.Thread(target=part.max) for part in parts]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return time.perf_counter() - started

    return BUFFER // 8 * 8 / min(seconds() for _ in range(TRIES))


@dataclass(frozen=True)
class StepBytes:
    """The bytes that a decode step reads.

    Attributes:
        weights: All weights except lookup tables.
        row: One row of all KV caches, read for each position of the context.
    """

    weights: int
    row: int

    def total(self, context: int) -> int:
        """Return the bytes that a step reads in all.

        Args:
            context: The number of tokens before it.

        Returns:
            Bytes.
        """
        return self.weights + context * self.row


def step_bytes(file: Path, contract: Contract) -> StepBytes:
    """Count the bytes that a decode step reads.

    Args:
        file: A Circle, TFLite or ONNX file.
        contract: Its signatures.

    Returns:
        The bytes.

    Raises:
        ModelError: The file is damaged.
    """
    caches = contract.decode.caches.values()
    row = sum(math.prod(cache.shape) // cache.num_rows * cache.dtype.itemsize for cache in caches)
    return StepBytes(_weight_bytes(_decode_graph(file, contract.decode.name)), row)


def _decode_graph(file: Path, signature: str) -> ir.Graph:
    if file.suffix == ".onnx":
        return ir.load(file).graph
    model = formats.load(file)
    return next(one.graph for one in model.signatures if one.name == signature)


def _weight_bytes(graph: ir.Graph) -> int:
    used: dict[int, ir.Value] = {}
    for node in graph:
        for number, value in enumerate(node.inputs):
            if value is None or not is_constant(value) or number in TABLES.get(node.op_type, ()):
                continue
            used[id(value)] = value
            for scales in quantization_constants(value).values():
                used[id(scales)] = scales
    return sum(value.const_value.nbytes for value in used.values() if value.const_value is not None)


if __name__ == "__main__":
    print(measure_bandwidth(int(sys.argv[1])))
