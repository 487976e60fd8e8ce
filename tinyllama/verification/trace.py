"""Intermediate tensors of a model, with the same names in every form of it.

Modules are found by the names of their weights. The operator that reads
`model.layers.0.self_attn.k_proj.weight` computes the output of `model.layers.0.self_attn.k_proj`. This is
true of transformers' modules, torch.export's graph and a TFLite file, whatever the names of other tensors. A
trace has

    model.layers.0.self_attn.k_proj          the module's output
    model.layers.0.self_attn.o_proj.input    the input of a linear module: here, attention's output
    model.layers.0.keys, .values             the rows for the caches (keys rotated)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Trace = dict[str, np.ndarray]
"""{name: [T, features]} in the order of computing."""

FLOAT32 = 1e-4  # of a tensor's largest element: rounding of float32 sums in any order


@dataclass(frozen=True)
class Operator:
    """An operator of any graph.

    Attributes:
        output: The tensor that it computes.
        inputs: The tensors that it reads.
        linear: Whether it multiplies the first of them by a matrix.
    """

    output: Hashable
    inputs: tuple[Hashable, ...]
    linear: bool


def traced_tensors(
    operators: Iterable[Operator], parameters: Mapping[Any, str], constants: Collection[Hashable] = ()
) -> dict[str, Hashable]:
    """Find the tensors of a graph that belong in a trace.

    If several operators read a parameter, such as a tied embedding, the first counts.

    Args:
        operators: The graph's operators in the order of computing.
        parameters: {tensor: parameter name}.
        constants: Other tensors that are no activations.

    Returns:
        {name in a trace: tensor}.
    """
    carries: dict[Hashable, str | None] = dict.fromkeys(constants) | dict(parameters)
    tensors: dict[str, Hashable] = {}
    read: set[str] = set()
    for operator in operators:
        names = {name for tensor in operator.inputs if (name := carries.get(tensor))}
        if all(tensor in carries for tensor in operator.inputs):
            carries[operator.output] = next(iter(names), None)  # such as a dequantized weight
            continue
        for name in names - read:
            read.add(name)
            module = name.rpartition(".")[0]
            if operator.linear and operator.inputs[0] not in carries:
                tensors.setdefault(f"{module}.input", operator.inputs[0])
            tensors[module] = operator.output  # the sum, if a bias is added
    return tensors


def rows(numbers: np.ndarray) -> np.ndarray:
    """Reshape a tensor to two axes.

    Args:
        numbers: [..., features].

    Returns:
        [rows, features].
    """
    return numbers.reshape(-1, numbers.shape[-1]) if numbers.ndim else numbers.reshape(1, 1)


def heads_as_rows(numbers: np.ndarray, layout: str = "BNTH") -> np.ndarray:
    """Reshape keys or values to two axes.

    Args:
        numbers: Keys or values of one batch.
        layout: Their axes.

    Returns:
        [T, K * H].
    """
    moved = numbers.transpose([layout.index(axis) for axis in "BTNH"])[0]
    return moved.reshape(len(moved), -1)


@dataclass(frozen=True)
class Difference:
    """The largest difference between two versions of a tensor.

    Attributes:
        name: The tensor's name in the traces.
        absolute: The difference.
        relative: The difference, relative to the tensor's largest element.
    """

    name: str
    absolute: float
    relative: float

    @property
    def layer(self) -> int | None:
        match = re.search(r"\.(\d+)\.", self.name)
        return int(match[1]) if match else None

    def __str__(self) -> str:
        return f"{self.name}, by {self.absolute:.1e} ({self.relative:.1e} of its largest element)"


def differences(expected: Trace, actual: Trace) -> list[Difference]:
    """Compare the tensors that both traces have, over the last rows that both have.

    Args:
        expected: The reference's trace.
        actual: The other trace.

    Returns:
        One difference for each tensor, in the order of `expected`.
    """
    result = []
    for name, numbers in expected.items():
        other = actual.get(name)
        if other is None or other.shape[-1] != numbers.shape[-1]:
            continue
        count = min(len(numbers), len(other))
        one, two = (x[-count:].astype(np.float64) for x in (numbers, other))
        gap = np.abs(one - two)
        off = float(gap.max()) if np.isfinite(gap).all() else float("inf")
        result.append(Difference(name, off, off / max(float(np.abs(one).max()), 1e-30)))
    return result


def first_difference(compared: Iterable[Difference], limit: float) -> str:
    """Describe the first difference beyond a limit, or else the largest.

    Args:
        compared: The differences in the order of computing.
        limit: The largest allowed relative difference.

    Returns:
        A text for the report.
    """
    compared = list(compared)
    if not compared:
        return "the traces have no tensor in common"
    if first := next((item for item in compared if item.relative > limit), None):
        return f"the first tensor that differs is {first}"
    largest = max(compared, key=lambda item: item.relative)
    return (
        f"no intermediate tensor differs by more than {limit:.0e} of its largest element; "
        f"the largest difference: {largest}"
    )
