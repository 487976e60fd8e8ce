"""ONNX's node tests as this project's own operators: `python -m bench.onnx_semantics [OPERATOR ...]`.

Each model of `onnx.backend.test` is raised to the operators of Circle, and run by the reference kernels.
Their results must equal the expected ones within the test's tolerance, and bfloat16 within its last bit. The
command prints how many tests of each operator pass and how many are refused, and then the reasons. Without
OPERATOR: Attention, RMSNormalization, RotaryEmbedding and TensorScatter; `all` for all operators. Exits with
1 if numbers differ.
"""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("onnx_semantics.py")  # before the slow imports

import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.progress import progress
from o2o.errors import ModelError
from o2o.operators.reference import NotEvaluable, run_graph
from o2o.raising import raise_graph

OPERATORS = ("Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter")
PASSED = "passed"


def verdict(case: Any) -> str:
    """Raise and run one test.

    Args:
        case: A test of `onnx.backend.test`.

    Returns:
        `PASSED`, `refused: ` and the reason, `other numbers: ` and where, or `internal error: `.
    """
    model = ir.serde.deserialize_model(case.model)
    try:
        raised = raise_graph(model.graph)
    except ModelError as error:
        return f"refused: {error}"
    except Exception as error:  # a fault of this project, to be seen beside the others
        return f"internal error: {error!r}"
    if raised.unsupported:
        return "refused: " + "; ".join(each.reason for each in raised.unsupported)
    for inputs, outputs in case.data_sets:
        if any(x is None or isinstance(x, list) for x in (*inputs, *outputs)):
            return "refused: it takes or returns sequences"
        arrays = [onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
        feeds = dict(zip((value.name or "" for value in raised.graph.inputs), arrays, strict=True))
        for value in raised.graph.inputs:
            assert value.dtype is not None
            feeds[value.name or ""] = np.asarray(feeds[value.name or ""]).astype(value.dtype.numpy())
        try:
            with np.errstate(all="ignore"):
                results = run_graph(raised.graph, feeds)
        except NotEvaluable as error:
            return f"refused: {error}"
        for value, expected in zip(raised.graph.outputs, outputs, strict=True):
            difference = _difference(results[value.name or ""], expected, case.rtol, case.atol)
            if difference:
                return f"other numbers: {value.name}, {difference}"
    return PASSED


def _difference(actual: np.ndarray, expected: Any, rtol: float, atol: float) -> str:
    if isinstance(expected, onnx.TensorProto):
        expected = onnx.numpy_helper.to_array(expected)
    expected = np.asarray(expected)
    if actual.shape != expected.shape:
        return f"{list(actual.shape)} instead of {list(expected.shape)}"
    x, y = (np.asarray(each).astype(np.float64) for each in (actual, expected))
    if expected.dtype == ml_dtypes.bfloat16:  # its numbers have 8 bits, and the test rounds each step
        atol = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps * np.abs(y).max())
    if np.allclose(x, y, rtol, atol, equal_nan=True):
        return ""
    with np.errstate(invalid="ignore"):
        return f"by up to {np.nanmax(np.abs(x - y)):.3g}"


def operators_of(case: Any) -> set[str]:
    """List the operators of a test.

    Args:
        case: A test of `onnx.backend.test`.

    Returns:
        Their names.
    """
    return {node.op_type for node in case.model.graph.node}


def report(verdicts: dict[str, dict[str, str]]) -> bool:
    """Print the verdicts.

    Args:
        verdicts: The verdict of each test, by operator and test.

    Returns:
        Whether all numbers are right, and nothing failed.
    """
    kinds = {
        name: Counter(text.partition(":")[0] for text in of.values()) for name, of in sorted(verdicts.items())
    }
    for name, counts in kinds.items():
        print(f"{name:24} " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    for name, of in sorted(verdicts.items()):
        for test, text in of.items():
            if text != PASSED:
                print(f"{name}: {test}: {text}")
    total = sum(kinds.values(), Counter())
    print(
        f"{sum(total.values()):,} tests: " + ", ".join(f"{n:,} {what}" for what, n in sorted(total.items()))
    )
    return not (total["other numbers"] or total["internal error"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser("onnx_semantics.py", __doc__, examples=["python -m bench.onnx_semantics Attention"])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help="an ONNX operator, or all")

    def body() -> int:
        args = parser.parse_args(argv)
        wanted = set(args.operators or OPERATORS)
        from onnx.backend.test.case.node import collect_testcases

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = collect_testcases(None)
        if "all" not in wanted:
            cases = [case for case in cases if operators_of(case) in [{name} for name in wanted]]
        verdicts: dict[str, dict[str, str]] = defaultdict(dict)
        with progress("tests", len(cases)) as advance:
            for case in cases:
                name = case.model.graph.node[0].op_type if case.model.graph.node else "none"
                verdicts[name][case.name] = verdict(case)
                advance(1)
        return int(not report(verdicts))

    return run("onnx_semantics.py", body)


if __name__ == "__main__":
    sys.exit(main())
