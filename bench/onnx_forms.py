"""Compare formulations of a product with a constant matrix on ONNX Runtime.

    python bench/onnx_forms.py [--rows 5632] [--columns 2048] [--tokens 1,128] [--threads 2] [--rounds 15]

Each form is a graph of several such matrices, larger than a processor's cache, run in turn with the others.
Prints microseconds of a product, the lowest of all rounds, and the ratio to the first form. `o2o.lower.onnx`
uses Gemm, with the matrix as Circle stores it. It uses MatMulNBits in blocks of 128 for rows with one scale.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("onnx_forms.py")

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from o2o.cli.arguments import Parser, number_list
from o2o.cli.command import run

MATRICES = 6
CONTRIB = "com.microsoft"
Constants = dict[str, np.ndarray]
Form = Callable[[int, int, int, np.random.Generator], tuple[NodeProto, Constants]]


def _floats(op_type: str, transposed: bool, domain: str = "") -> Form:
    """A product of x [T, columns] with a float32 matrix, stored as [columns, rows] if `transposed`."""

    def form(k: int, rows: int, columns: int, rng: np.random.Generator) -> tuple[NodeProto, Constants]:
        matrix = rng.standard_normal((columns, rows) if transposed else (rows, columns), np.float32)
        options = {} if transposed else {"transB": 1}
        return helper.make_node(op_type, ["x", f"w{k}"], [f"y{k}"], domain=domain, **options), {
            f"w{k}": matrix
        }

    return form


def _blocks(bits: int, block: int) -> Form:
    """MatMulNBits, which quantizes x to int8."""

    def form(k: int, rows: int, columns: int, rng: np.random.Generator) -> tuple[NodeProto, Constants]:
        count = columns // block
        matrix = rng.integers(0, 256, (rows, count, block * bits // 8), np.uint8)
        scales = rng.random((rows, count), np.float32) / 100
        node = helper.make_node(
            "MatMulNBits",
            ["x", f"w{k}", f"s{k}"],
            [f"y{k}"],
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=bits,
            block_size=block,
            accuracy_level=4,
        )
        return node, {f"w{k}": matrix, f"s{k}": scales}

    return form


FORMS: dict[str, Form] = {
    "Gemm, B turned": _floats("Gemm", transposed=False),
    "MatMul": _floats("MatMul", transposed=True),
    "FusedMatMul, B turned": _floats("FusedMatMul", transposed=False, domain=CONTRIB),
    **{f"MatMulNBits, int8 in {n}": _blocks(8, n) for n in (32, 64, 128, 256)},
    **{f"MatMulNBits, int4 in {n}": _blocks(4, n) for n in (32, 64, 128, 256)},
}


def model(form: Form, rows: int, columns: int) -> ModelProto:
    """Build a model of `MATRICES` products of one x [T, columns].

    Args:
        form: A value of `FORMS`.
        rows: Output features.
        columns: Input features.

    Returns:
        The model.
    """
    rng = np.random.default_rng(0)
    products = [form(k, rows, columns, rng) for k in range(MATRICES)]
    constants = [numpy_helper.from_array(a, name) for _, arrays in products for name, a in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", columns])
    ys = [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["T", rows]) for k in range(MATRICES)]
    graph = helper.make_graph([node for node, _ in products], "products", [x], ys, constants)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def session(model: ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        model: The model.
        threads: Threads of ONNX Runtime.

    Returns:
        A session on the CPU.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5632)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--tokens", type=number_list, default=[1, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    return run("onnx_forms.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    sessions = {
        name: session(model(form, args.rows, args.columns), args.threads) for name, form in FORMS.items()
    }
    for tokens in args.tokens:
        x = np.random.default_rng(1).standard_normal((tokens, args.columns), np.float32)
        least = dict.fromkeys(FORMS, float("inf"))
        for _ in range(args.rounds):
            for name, each in sessions.items():
                started = time.perf_counter()
                each.run(None, {"x": x})
                least[name] = min(least[name], (time.perf_counter() - started) / MATRICES)
        first = least[next(iter(FORMS))]
        for name, seconds in least.items():
            print(f"{tokens:>4} tokens  {name:<24} {seconds * 1e6:>8.0f} us  {first / seconds:>5.2f}x")


if __name__ == "__main__":
    sys.exit(main())
