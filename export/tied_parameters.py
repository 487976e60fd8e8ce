"""Tied parameters that a checkpoint stores more than once: one parameter if their numbers are equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from o2o.weights.weight_source import WeightSource


def have_equal_numbers(groups: Iterable[Sequence[str]], tensors: Mapping[str, WeightSource]) -> bool:
    """Compare the stored tensors of tied parameters.

    Args:
        groups: The names of the stored tensors of each tied parameter.
        tensors: The tensors of the checkpoint.

    Returns:
        Whether the tensors of each group hold the same numbers.
    """
    return all(_same_numbers(tensors[group[0]], tensors[name]) for group in groups for name in group[1:])


def _same_numbers(a: WeightSource, b: WeightSource) -> bool:
    if a.key == b.key:
        return True
    if a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.chunks(), b.chunks(), strict=True))
