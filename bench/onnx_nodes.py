"""ONNX's node tests, read and written again: `python -m bench.onnx_nodes [FILTER ...]`.

Each model of `onnx.backend.test` is read and written, twice. Both results must have the same bytes, and hold
the message of the model. ONNX's reference evaluator must compute the same from the model and from the result.
With FILTER, such as `gc.py`, these filters run in between. Exits with 1 if anything differs.
"""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("onnx_nodes.py")  # before the slow imports

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from o2o import filters, formats
from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.progress import progress
from o2o.errors import ModelError, UsageError

EQUAL = ("the same", "not evaluated")
"""Verdicts on a model that is written as it was read. The second one: no outputs could be compared."""


def without_empty_strings(message: Any) -> Any:
    """Drop strings that are empty: absent ones mean the same.

    Args:
        message: A protobuf message, changed in place.

    Returns:
        The message.
    """
    for field, item in message.ListFields():
        if field.type == field.TYPE_STRING and item == "":
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for each in [item] if hasattr(item, "ListFields") else item:
                without_empty_strings(each)
    return message


def outputs_of(proto: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any] | None:
    """Evaluate a model.

    Args:
        proto: The model.
        inputs: Its inputs in order.

    Returns:
        Its outputs; None if the reference evaluator cannot run it.
    """
    names = [value.name for value in proto.graph.input]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return list(ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=False))))
    except Exception:  # it raises anything
        return None


def same(first: Any, second: Any) -> bool:
    """Compare two outputs: tensors, sequences of them, or nothing.

    Args:
        first: An output.
        second: Another one.

    Returns:
        Whether they hold the same numbers, NaN included.
    """
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if first is None or second is None:
        return first is second
    a, b = np.asarray(first), np.asarray(second)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def verdict(proto: onnx.ModelProto, data_sets: Sequence[Any], chosen: Sequence[str], folder: Path) -> str:
    """Check one model.

    Args:
        proto: The model.
        data_sets: Its inputs and outputs.
        chosen: Modules of filters to run.
        folder: For temporary files.

    Returns:
        One of `EQUAL`, or what differs.
    """
    data = proto.SerializeToString(deterministic=True)
    try:
        written = formats.dumps(formats.loads(data))
    except ModelError as error:
        return f"refused: {error}"
    if formats.dumps(formats.loads(written)) != written:
        return "other bytes at the second time"
    result = onnx.ModelProto.FromString(written)
    original = onnx.ModelProto.FromString(data)
    if without_empty_strings(original) != without_empty_strings(onnx.ModelProto.FromString(written)):
        return "another message"
    for module in chosen:
        (folder / "in.onnx").write_bytes(written)
        if filters.load(module).main([str(folder / "in.onnx"), "-o", str(folder / "out.onnx")]):
            return f"{module} failed"
        result = onnx.load(folder / "out.onnx")
        written = (folder / "out.onnx").read_bytes()
    results = "not evaluated"
    for inputs, _ in data_sets:
        expected = outputs_of(onnx.ModelProto.FromString(data), inputs)
        is_random = expected is None or not same(
            expected, outputs_of(onnx.ModelProto.FromString(data), inputs)
        )
        if expected is None or is_random:
            continue
        actual = outputs_of(result, inputs)
        if actual is None or not same(expected, actual):
            return "other outputs"
        results = "the same"
    return results


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser("onnx_nodes.py", __doc__, examples=["python -m bench.onnx_nodes gc.py"])
    parser.add_argument("filters", nargs="*", metavar="FILTER", help="a filter without arguments to run")

    def body() -> int:
        args = parser.parse_args(argv)
        chosen = [filters.find(name) or "" for name in args.filters]
        if "" in chosen:
            raise UsageError(f"there is no filter {args.filters[chosen.index('')]!r}")
        from onnx.backend.test.case.node import collect_testcases

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = collect_testcases(None)
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder, progress("nodes", len(cases)) as advance:
            for case in cases:
                result = verdict(case.model, case.data_sets or (), chosen, Path(folder))
                counts[result if result in EQUAL else "different"] += 1
                if result not in EQUAL:
                    print(f"{case.name}: {result}")
                advance(1)
        print(f"{len(cases):,} models: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
        return int(counts["different"] > 0)

    return run("onnx_nodes.py", body)


if __name__ == "__main__":
    sys.exit(main())
