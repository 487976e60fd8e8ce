"""Report of a quantization: errors and sizes of each matrix and of all, as JSON and as one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from o2o.cli.text import counted
from o2o.quantization.error import QuantizationError
from o2o.quantization.quantize import MatrixResult
from o2o.quantization.recipes import FLOAT, Recipe


def report(recipe: Recipe, results: Sequence[MatrixResult]) -> dict[str, Any]:
    """Return the report of a model that has been written.

    Args:
        recipe: The recipe.
        results: The results of `quantize`.

    Returns:
        An object for JSON: the recipe, `bytes` before and after, and the relative `error` (`rms` and `max`).
        `tensors` has the same for each matrix.
    """
    error = QuantizationError()
    tensors = []
    for result in results:
        entry: dict[str, Any] = {
            "name": result.name,
            "parts": result.parts,
            "shape": list(result.shape),
            "scheme": result.scheme.name if result.scheme else FLOAT,
            "bytes": [result.before, result.after],
        }
        if result.tensor is not None and result.tensor.error is not None:
            entry["error"] = result.tensor.error.as_json()
            error.add(result.tensor.error)
        if result.reason:
            entry["reason"] = result.reason
        tensors.append(entry)
    sizes = [sum(result.before for result in results), sum(result.after for result in results)]
    return {**recipe.as_json(), "bytes": sizes, "error": error.as_json(), "tensors": tensors}


def summary(contents: dict[str, Any]) -> str:
    """Return a report as one line.

    Args:
        contents: The report.

    Returns:
        The number of matrices by scheme, the bytes before and after, and the relative error.
    """
    counts = Counter(entry["scheme"] for entry in contents["tensors"])
    unchanged = counts.pop(FLOAT, 0)
    if not counts:
        reasons = Counter(entry["reason"] for entry in contents["tensors"])
        reason = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        tensors = counted(unchanged, "tensor")
        return f"{tensors} not quantized{reason}" if unchanged else "the model has no float weights"
    quantized = ", ".join(f"{count} to {scheme}" for scheme, count in sorted(counts.items()))
    before, after = contents["bytes"]
    error = "relative error {rms:.2g}, at most {max:.2g} of the largest number".format(**contents["error"])
    rest = f" ({unchanged} unchanged)" if unchanged else ""
    return f"{contents['recipe']}: {quantized}{rest}, {before:,} bytes to {after:,}; {error}"
