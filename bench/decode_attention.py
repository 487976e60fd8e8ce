"""Measure the attention of a decode step on LiteRT: several formulations, by KV-cache capacity.

    python bench/decode_attention.py [--capacities 256,512,1024,2048] [--shape tinyllama-1.1b] [--rounds 20]

Only attention is measured, of all layers of a shape. Each layer writes a row into its caches. Then one query
of each head attends to the whole cache. Prints milliseconds of a step for `by head`, and for the others the
ratio to it. Ratios are medians (with the range) of rounds; in a round the formulations take turns. The
runtime uses `by head`; its rows show what decode saves with buckets (`o2o.lower.litert.tuning`).

    by head      caches [1, K, S, H]; q k' and weights v, a group's query heads as rows; arithmetic mask
    by token     caches [1, S, K, H], AI Edge's layout, transposed for each product
    compared     by head; the mask by LESS_EQUAL and SELECT_V2, which XNNPACK does not support
    keys first   by head; k q' instead of q k', so that no key is packed; the scores are transposed
    k turned     by head; keys stored as [1, K, H, S]
    v turned     by head; values stored as [1, K, H, S]
    flash        by head; blocks of 256 keys in a loop that stops at the last visible one
    window       by head; a window of 512 tokens as a part of the mask
    last keys    by head; a window of 512 tokens: its rows are copied, and the others are not read
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("decode_attention.py")

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from o2o.cli.arguments import Parser, number_list
from o2o.cli.command import run

ROOT = Path(__file__).resolve().parents[1]
FORMS = (
    "by head",
    "by token",
    "compared",
    "keys first",
    "k turned",
    "v turned",
    "flash",
    "window",
    "last keys",
)
FLASH_KEYS = 256
WINDOW = 512
INT32 = ir.DataType.INT32


def _value(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """A graph input."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _save(form: str, S: int, layers: int, heads: tuple[int, int, int], file: Path) -> None:
    """Write a TFLite file: q [1, N, 1, H], row [1, K, 1, H], position, caches -> y [1, N, 1, H], caches."""
    from o2o import formats
    from o2o.lower.litert import lower_to_litert
    from o2o.lower.litert.flash_attention import flash_attention
    from o2o.lower.litert.sdpa import causal_mask, last_keys, scaled_dot_product_attention
    from o2o.model import DOMAIN, Model, Signature
    from o2o.operators.core_attention import CoreAttention, FlashBlockSizes
    from o2o.rewriting.builder import Builder

    N, K, H = heads
    G = N // K
    by_token, transposed = form == "by token", form.partition(" turned")[0]
    shape = (1, S, K, H) if by_token else (1, K, S, H)
    key_shape, value_shape = ((1, K, H, S) if transposed == cache else shape for cache in "kv")
    y, row, position = _value("q", (1, N, 1, H)), _value("row", (1, K, 1, H)), _value("position", (1,), INT32)
    caches = [
        (_value(f"past_key_{i}", key_shape), _value(f"past_value_{i}", value_shape)) for i in range(layers)
    ]
    inputs = [y, row, position, *(cache for pair in caches for cache in pair)]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={DOMAIN: 1})
    model, op = Model("circle", [graph]), Builder(graph)

    def start(axis: int) -> ir.Value:
        zeros = [op.constant([0] * count, "zeros", np.int32) for count in (axis, 3 - axis)]
        parts = [zeros[0], position, *([zeros[1]] if axis < 3 else [])]
        return op.node("CONCATENATION", parts, [4], INT32, axis=0)

    def product(a: ir.Value, b: ir.Value, shape: tuple[int, ...], adjoint: bool) -> ir.Value:
        return op.node("BATCH_MATMUL", [a, b], shape, adjointLhs=False, adjointRhs=adjoint)

    at = op.reshape(position, [1, 1])
    steps = np.arange(S)[None]
    if form == "compared":
        keys = op.constant(steps, "keys", np.int32)
        seen = op.node("LESS_EQUAL", [keys, at], [1, S], ir.DataType.BOOL)
        shown, hidden = (op.constant(number, "mask", np.float32) for number in (0, -1e9))
        mask = op.node("SELECT_V2", [seen, shown, hidden], [1, S], ir.DataType.FLOAT)
    else:
        mask = causal_mask(op, at, np.zeros((1, 1)), steps)
    starts = [start(3 if transposed == cache else 1 if by_token else 2) for cache in "kv"]
    scale = op.constant(H**-0.5, "scale", np.float32)
    for layer, (key, value_) in enumerate(caches):
        by_cache = [1, 1, K, H] if by_token else [1, K, 1, H]
        rows = [op.reshape(row, [1, K, H, 1] if transposed == cache else by_cache) for cache in "kv"]
        k, v = (
            op.node(
                "DYNAMIC_UPDATE_SLICE", [cache, new, at_], cache.shape.numpy(), name=f"present_{n}_{layer}"
            )  # type: ignore[union-attr]
            for n, cache, new, at_ in zip("kv", (key, value_), rows, starts, strict=True)
        )
        graph.outputs.extend([k, v])
        if by_token:
            k, v = (op.transpose(x, (0, 2, 1, 3)) for x in (k, v))
        if form == "flash":
            of = CoreAttention(y, k, v, position, H**-0.5)
            y = flash_attention(model, op, of, position, FlashBlockSizes(1, FLASH_KEYS))
        elif form in ("window", "last keys"):
            of, place = CoreAttention(y, k, v, position, H**-0.5, window=min(WINDOW, S)), position
            if form == "last keys":
                of, place = last_keys(op, of, place)
            y = scaled_dot_product_attention(op, of, place)
        elif form in ("by head", "by token", "compared"):
            y = scaled_dot_product_attention(op, CoreAttention(y, k, v, position, H**-0.5, mask), None)
        else:
            q = op.reshape(op.node("MUL", [y, scale], [1, N, 1, H]), [1, K, G, H])
            if form == "keys first":
                scores = op.transpose(product(k, q, (1, K, S, G), True), (0, 1, 3, 2))
            else:
                scores = product(q, k, (1, K, G, S), transposed != "k")
            weights = op.node("ADD", [scores, mask], [1, K, G, S])
            weights = op.node("SOFTMAX", [weights], [1, K, G, S], beta=1.0)
            y = product(weights, v, (1, K, G, H), transposed == "v")
        y = op.reshape(y, [1, N, 1, H])
    graph.outputs.insert(0, op.node("NEG", [y], (1, N, 1, H), name="y"))
    ins, outs = ({value.name or "": value for value in side} for side in (graph.inputs, graph.outputs))
    model.signatures.append(Signature("main", graph, ins, outs))
    formats.save(lower_to_litert(model), file)


def _load(file: Path, threads: int) -> Callable[[int], float]:
    """A function that runs the file at a position and returns the seconds. Caches are updated in place."""
    from o2o.cli.silence_stderr import silenced_stderr

    with silenced_stderr():
        from runtime_py.engines.litert.compiled_model import compile_model, silence_at_exit

        silence_at_exit()
        model = compile_model(file, None, threads)
        names, details = model.get_signature_list()["main"], model.get_input_tensor_details("main")
        generator = np.random.default_rng(0)
        buffers = {}
        for name in names["inputs"]:
            buffers[name] = model.create_input_buffer_by_name("main", name)
            shape = details[name]["shape"]
            integer = name == "position"
            buffers[name].write(
                np.zeros(shape, np.int32) if integer else generator.standard_normal(shape, np.float32)
            )
        ins = list(buffers.values())
        caches = iter(buffer for name, buffer in buffers.items() if name.startswith("past_"))
        outs = [
            next(caches) if name.startswith("present_") else model.create_output_buffer_by_name("main", name)
            for name in names["outputs"]
        ]

    def run(position: int) -> float:
        buffers["position"].write(np.array([position], np.int32))
        started = time.perf_counter()
        model.run_by_index(0, ins, outs)
        return time.perf_counter() - started

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacities", type=number_list, default="256,512,1024,2048")
    parser.add_argument("--shape", default="tinyllama-1.1b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", default=",".join(FORMS))
    return run("decode_attention.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    from bench.make_checkpoint import SHAPES

    _, _, layers, N, K, H, _, _ = SHAPES[args.shape]
    forms = args.forms.split(",")
    print(f"{layers} layers' attention, {N} heads over {K}, each of {H}, {args.threads} threads")
    print(f"{'capacity':>8}  {'position':>8} " + "".join(f"{form:>22}" for form in forms))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for S in args.capacities:
            runs = {}
            for form in forms:
                file = Path(folder) / f"{form}.tflite"
                _save(form, S, layers, (N, K, H), file)
                runs[form] = _load(file, args.threads)
            for position in (S // 2, S - 1):
                rounds = [
                    {form: min(run(position) for _ in range(3)) for form, run in runs.items()}
                    for _ in range(args.rounds)
                ]
                cells = [_cell(form, forms[0], rounds) for form in forms]
                print(f"{S:>8,}  {position:>8,} " + "".join(f"{cell:>22}" for cell in cells), flush=True)


def _cell(form: str, first: str, rounds: list[dict[str, float]]) -> str:
    if form == first:
        return f"{statistics.median(times[form] for times in rounds) * 1e3:.2f} ms"
    ratios = sorted(times[form] / times[first] for times in rounds)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    sys.exit(main())
