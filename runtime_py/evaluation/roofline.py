"""How fast a step could be, if reading memory were all it does.

Decoding one token multiplies every weight with one row of numbers, so that a step takes at least as long as
memory takes to hand over the weights and the caches (Williams et al. 2009, "Roofline").
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import math
import os
import subprocess
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
from o2o.operators.facts import BUILTIN
from runtime_py.model.contract import Contract

BUFFER = 1 << 28
"""Bytes that are read: more than processors have caches."""
TIMES = 5
TABLES = {
    **{name: [facts.table] for name, facts in BUILTIN.items() if facts.table is not None},
    "Gather": [0],
    "GatherBlockQuantized": [0, 2, 3],
}
"""Of these operators, Circle's and ONNX's, the operands of which a step reads a row or so."""


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads of another process read from memory: the most of some tries."""
    command = [sys.executable, "-m", __name__, str(threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def reading(threads: int) -> float:
    """`bandwidth`, of this process, with `BUFFER` bytes of its memory."""
    parts = np.array_split(np.ones(BUFFER // 8, np.uint64), threads)

    def once() -> float:
        readers = [threading.Thread(target=part.max) for part in parts]
        started = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return time.perf_counter() - started

    return BUFFER // 8 * 8 / min(once() for _ in range(TIMES))


@dataclass(frozen=True)
class Step:
    """The bytes that a decode step has to read. weights: all, but for tables that it looks up a row of. row:
    of the caches, for each position of the text so far."""

    weights: int
    row: int

    def behind(self, context: int) -> int:
        """Of a step that sees so many positions."""
        return self.weights + context * self.row


def step_of(file: Path, contract: Contract) -> Step:
    """What a decode step of the model in `file` reads. Raises ModelError."""
    caches = contract.decode.caches.values()
    row = sum(math.prod(cache.shape) // cache.rows * cache.dtype.itemsize for cache in caches)
    return Step(_weights(_graph(file, contract.decode.name)), row)


def _graph(file: Path, signature: str) -> ir.Graph:
    if file.suffix == ".onnx":
        return ir.load(file).graph
    model = formats.load(file)
    return next(one.graph for one in model.signatures if one.name == signature)


def _weights(graph: ir.Graph) -> int:
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
    print(reading(int(sys.argv[1])))
