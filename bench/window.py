"""Measure window caches against full caches: memory, and a decode step at the end of a context.

    python bench/window.py [--contexts 1024,8192,32768] [--rounds 5] [--layers 6] [--threads 2]

The model has random weights and Gemma 3's pattern: five layers with a window of 512 tokens, then one without.
K = 1, N = 4, H = 256, as in Gemma 3 of 270M and 1B; D is small, so that a step is mostly attention. Prefills
of 256 tokens give its window caches 1,024 rows. The KV caches hold random rows. Both forms take turns in a
round. The ratio is the median of rounds. "rows move": the first step, before which the rows of window caches
move.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("window.py")

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from o2o.cli.arguments import Parser, number_list
from o2o.cli.command import run
from o2o.contract import Role
from o2o.model import Model, Signature, shape_of
from o2o.operators.core_attention import CoreAttention
from o2o.rewriting.builder import Builder
from o2o.rewriting.window_caches import shrink_window_caches, window_layers

WINDOW, EVERY = 512, 6
V, D, N, K, H = 256, 64, 4, 1, 256
T, STEPS, LAST = 256, 12, 700
INT32 = ir.DataType.INT32


def decoder(S: int, layers: int) -> Model:
    """Build prefill and decode of S tokens with full caches.

    Args:
        S: The capacity.
        layers: The number of layers.

    Returns:
        A Circle model.
    """
    model = Model("circle", [])
    for name, length in (("prefill", T), ("decode", 1)):
        signature = _signature(name, length, S, layers)
        model.graphs.append(signature.graph)
        model.signatures.append(signature)
    return model


def _signature(name: str, length: int, S: int, layers: int) -> Signature:
    inputs: dict[str, ir.Value] = {}
    outputs: dict[str, ir.Value] = {}
    graph = ir.Graph([], [], nodes=[], name=name)
    op, rng = Builder(graph), np.random.default_rng(0)

    def given(
        name: str, shape: Sequence[int], role: Role, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        value.meta["role"] = role
        inputs[name] = value
        graph.inputs.append(value)
        return value

    def linear(x: ir.Value, rows: int) -> ir.Value:
        columns = shape_of(x)[-1]
        weight = op.constant(rng.standard_normal((rows, columns)) / columns**0.5, "weight", np.float32)
        shape = [*shape_of(x)[:-1], rows]
        return op.node("FULLY_CONNECTED", [x, weight, None], shape, keepNumDims=1)

    ids = given("tokens", [1, length], Role("tokens"), INT32)
    position = given("position", [1], Role("position"), INT32)
    zero = op.constant([0], "zero", np.int32)
    start = op.node("CONCATENATION", [zero, zero, position, zero], [4], INT32, axis=0)
    table = op.constant(rng.standard_normal((V, D)), "table", np.float32)
    x = op.node("GATHER", [table, ids], [1, length, D], ir.DataType.FLOAT, axis=0, batchDims=0)
    for layer in range(layers):
        window = WINDOW if (layer + 1) % EVERY else 0
        q, k, v = (
            op.transpose(op.reshape(linear(x, heads * H), [1, length, heads, H]), [0, 2, 1, 3])
            for heads in (N, K, K)
        )
        written = []
        for kind, rows in (("key", k), ("value", v)):
            role = Role(f"{kind}_cache", layer, "BNTH", window or None)  # type: ignore[arg-type]
            past = given(f"past_{kind}_{layer}", [1, K, S, H], role)
            present = op.node("DYNAMIC_UPDATE_SLICE", [past, rows, start], [1, K, S, H])
            present.meta["role"] = role.output_role
            outputs[f"present_{kind}_{layer}"] = present
            written.append(present)
        node = CoreAttention(q, *written, position, scale=H**-0.5, window=window).build(f"attention_{layer}")
        op.add(node)
        x = op.node("ADD", [x, linear(op.reshape(node.outputs[0], [1, length, N * H]), D)], [1, length, D])
    logits = linear(x, V)
    logits.meta["role"] = Role("logits")
    outputs = {"logits": logits} | outputs
    graph.outputs.extend(outputs.values())
    return Signature(name, graph, inputs, outputs)


class _Session:
    """A session whose KV caches hold random rows up to the end of the context."""

    def __init__(self, model: Model, file: Path, threads: int) -> None:
        from o2o import formats
        from runtime_py.engines.litert.engine import load
        from runtime_py.engines.model_file import ModelFile
        from runtime_py.engines.options import EngineOptions

        formats.save(model, file)
        self.engine = load(ModelFile(file), EngineOptions(threads=threads, buckets=[]))
        self.session = self.engine.open_session()
        caches = self.engine.contract.decode.caches.values()
        self.bytes = sum(math.prod(cache.shape) * cache.dtype.itemsize for cache in caches)
        self.position = start = self.engine.capacity - LAST
        rng = np.random.default_rng(0)
        for _, rows in self.session.kv_caches.select(self.engine.capacity, 0, start).values():
            rows[...] = rng.standard_normal(rows.shape, np.float32)
        self.session.kv_caches.hold_last(self.engine.capacity, start)
        self.moved = [self._step()]  # the rows of window caches are full, and move

    def _step(self) -> float:
        started = time.perf_counter()
        self.session.decode(1, self.position)
        self.position += 1
        return time.perf_counter() - started

    def measure(self) -> float:
        """The shortest of some steps, in seconds."""
        return min(self._step() for _ in range(STEPS))

    def close(self) -> None:
        self.session.close()
        self.engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The command line; None for that of the process.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=number_list, default="1024,8192,32768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    return run("window.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    print(f"{'context':>8} {'rows':>6} {'full':>10} {'window':>10} {'ratio':>6} {'step, full':>11} ", end="")
    print(f"{'window':>9} {'ratio':>6} {'rows move':>10}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for S in args.contexts:
            full, window = decoder(S, args.layers), decoder(S, args.layers)
            layers = window_layers(window)
            rows = layers.default_rows if layers is not None and layers.pays else S
            if rows < S:
                shrink_window_caches(window, rows)
            sessions = [
                _Session(model, Path(folder) / f"{name}.circle", args.threads)
                for name, model in (("full", full), ("window", window))
            ]
            rounds = [[session.measure() for session in sessions] for _ in range(args.rounds)]
            a, b = (session.bytes for session in sessions)
            times = [statistics.median(column) * 1e3 for column in zip(*rounds, strict=True)]
            ratio = statistics.median(one[0] / one[1] for one in rounds)
            print(
                f"{S:>8,} {rows:>6,} {a / 1e6:>7.1f} MB {b / 1e6:>7.1f} MB {a / b:>6.2f} {times[0]:>8.2f} ms "
                f"{times[1]:>6.2f} ms {ratio:>6.2f} {sessions[1].moved[0] * 1e3:>7.2f} ms",
                flush=True,
            )
            for session in sessions:
                session.close()


if __name__ == "__main__":
    sys.exit(main())
