"""What quantisation cost and saved: per tensor and overall, for JSON and in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from o2o.cli.text import counted
from o2o.quantization.quantize import Done
from o2o.quantization.recipes import FLOAT, Recipe
from o2o.quantization.tensors import Error


def report(recipe: Recipe, done: Sequence[Done]) -> dict[str, Any]:
    """Ready for JSON, once the tensors have been written. Errors are shares: `rms` of the numbers' root mean
    square, `max` of the largest; bytes are those in a file, of all matrices that the recipe could mean."""
    error = Error()
    tensors = []
    for one in done:
        entry: dict[str, Any] = {
            "name": one.name,
            "parts": one.parts,
            "shape": list(one.shape),
            "scheme": one.scheme.name if one.scheme else FLOAT,
            "bytes": [one.before, one.after],
        }
        if one.tensor is not None and one.tensor.error is not None:
            entry["error"] = one.tensor.error.told()
            error.add(one.tensor.error)
        if one.reason:
            entry["reason"] = one.reason
        tensors.append(entry)
    sizes = [sum(one.before for one in done), sum(one.after for one in done)]
    return {**recipe.told(), "bytes": sizes, "error": error.told(), "tensors": tensors}


def summary(told: dict[str, Any]) -> str:
    """`told` by `report` in a line."""
    counts = Counter(entry["scheme"] for entry in told["tensors"])
    left = counts.pop(FLOAT, 0)
    if not counts:
        reasons = Counter(entry["reason"] for entry in told["tensors"])
        why = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        return f"left {counted(left, 'table')} alone{why}" if left else "there are no weights in floats"
    made = ", ".join(f"{count} of {scheme}" for scheme, count in sorted(counts.items()))
    before, after = told["bytes"]
    lost = "relative error {rms:.2g}, at most {max:.2g} of the largest number".format(**told["error"])
    rest = f" ({left} left as they are)" if left else ""
    return f"{told['recipe']}: {made}{rest}, {before:,} bytes to {after:,}; {lost}"
