"""The tensors on the way to the logits, named alike whatever computes them.

A module has a name and weights, and so leaves its mark on every graph that was made of it: the operator that
reads `model.layers.0.self_attn.k_proj.weight` gives what the module `model.layers.0.self_attn.k_proj` gives.
That holds for transformers' modules, for torch.export's graph and for a TFLite file, whatever its other
tensors are called. A trace has

    model.layers.0.self_attn.k_proj          what the module gives
    model.layers.0.self_attn.o_proj.input    what a linear module is given: here, what attention gives
    model.layers.0.keys, .values             what goes into the caches (keys rotated)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Trace = dict[str, np.ndarray]
"""In the order of computing: [rows, features] each, a row for each token, the last token last."""

FLOAT32 = 1e-4  # of a tensor's largest number: what float32 explains in any order of adding


@dataclass(frozen=True)
class Operator:
    """An operator of any graph: the tensor that it gives, those that it reads, and whether it multiplies the
    first of them by a matrix."""

    output: Hashable
    inputs: tuple[Hashable, ...]
    linear: bool


def sites(
    operators: Iterable[Operator], parameters: Mapping[Any, str], constants: Collection[Hashable] = ()
) -> dict[str, Hashable]:
    """{name in a trace: tensor} of a graph whose `operators` come in the order of computing.

    parameters: the tensors that are parameters, with their names. constants: what else is no activation.
    Of a parameter with several readers, as an embedding that is tied, the first counts.
    """
    carries: dict[Hashable, str | None] = dict.fromkeys(constants) | dict(parameters)
    found: dict[str, Hashable] = {}
    read: set[str] = set()
    for operator in operators:
        names = {name for tensor in operator.inputs if (name := carries.get(tensor))}
        if all(tensor in carries for tensor in operator.inputs):
            carries[operator.output] = next(iter(names), None)  # such as a weight made float32 again
            continue
        for name in names - read:
            read.add(name)
            module = name.rpartition(".")[0]
            if operator.linear and operator.inputs[0] not in carries:
                found.setdefault(f"{module}.input", operator.inputs[0])
            found[module] = operator.output  # where a bias comes later, what it gives
    return found


def rows(numbers: np.ndarray) -> np.ndarray:
    """[..., features] as [rows, features]."""
    return numbers.reshape(-1, numbers.shape[-1]) if numbers.ndim else numbers.reshape(1, 1)


def heads_as_rows(numbers: np.ndarray, layout: str = "BNTH") -> np.ndarray:
    """Keys or values of one batch in that layout as [T, K * H]."""
    moved = numbers.transpose([layout.index(axis) for axis in "BTNH"])[0]
    return moved.reshape(len(moved), -1)


@dataclass(frozen=True)
class Difference:
    """How far apart two numbers of one tensor are, at most; `relative` to the tensor's largest number."""

    name: str
    absolute: float
    relative: float

    @property
    def layer(self) -> int | None:
        found = re.search(r"\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    def __str__(self) -> str:
        return f"{self.name}, by {self.absolute:.1e} ({self.relative:.1e} of its largest number)"


def differences(expected: Trace, found: Trace) -> list[Difference]:
    """Of what is in both traces, in the order of `expected`; of rows, the last that both have."""
    result = []
    for name, numbers in expected.items():
        other = found.get(name)
        if other is None or other.shape[-1] != numbers.shape[-1]:
            continue
        count = min(len(numbers), len(other))
        one, two = (x[-count:].astype(np.float64) for x in (numbers, other))
        gap = np.abs(one - two)
        off = float(gap.max()) if np.isfinite(gap).all() else float("inf")
        result.append(Difference(name, off, off / max(float(np.abs(one).max()), 1e-30)))
    return result


def culprit(found: Iterable[Difference], limit: float) -> str:
    """In words: the first difference beyond `limit`, or, if there is none, the largest."""
    found = list(found)
    if not found:
        return "no tensor on the way is in both"
    if first := next((item for item in found if item.relative > limit), None):
        return f"the first tensor that differs is {first}"
    largest = max(found, key=lambda item: item.relative)
    return f"no tensor on the way differs by more than {limit:.0e} of its largest number; most, {largest}"
