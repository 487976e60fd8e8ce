"""Compare two models on LiteRT: the same inputs through a model before and after a filter.

Inputs and outputs are paired by their names in the signatures, renamed ones by role, else by order. A filter
may change shapes, dtypes, cache layouts and cache capacities. Such changes are undone before comparing. Both
models run at position 0 and at the last position that both models have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from o2o.check.litert_runner import IoTensor, LiteRtRunner
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.model import Model

TOLERANCE = 1e-4
"""Relative to the largest number of a float tensor, at least 1. Other tensors must be equal."""
SEED = 0


def check(before: Sequence[Model], after: Model, tolerance: float = TOLERANCE) -> str:
    """Run the signatures of `before` and their counterparts in `after`, and compare the outputs.

    Args:
        before: The models that a filter read.
        after: Its result.
        tolerance: The largest difference, as a share of a tensor's largest number.

    Returns:
        A sentence for the user: how many outputs were compared, and the largest difference.

    Raises:
        ModelError: An output differs (the first tensor that does is named), or the two cannot be compared.
    """
    new = LiteRtRunner(after, "the result")
    olds = [(old, name) for old in (LiteRtRunner(model, "the input") for model in before) for name in old.io]
    new_names = _paired_signatures([name for _, name in olds], list(new.io))
    differences = [
        difference
        for (old, name), new_name in zip(olds, new_names, strict=True)
        if new_name is not None
        for position in _positions(old.io[name][0], new.io[new_name][0])
        for difference in _Comparison(old, name, new, new_name, position).run(tolerance)
    ]
    if not differences:
        raise ModelError("--check: the result has none of the input's outputs")
    return (
        f"checked on LiteRT: {counted(len(differences), 'output')} the same, within {max(differences):.1e} "
        "of the largest number"
    )


def _paired_signatures(old: Sequence[str], new: Sequence[str]) -> list[str | None]:
    """Map old signature names to new ones: the same name, or by order if only the names changed."""
    if len(old) == len(new) and not set(old) <= set(new):
        return list(new)
    return [name if name in new else None for name in old]


def _paired_tensors(old: Mapping[str, IoTensor], new: Mapping[str, IoTensor]) -> list[str | None]:
    """Map old tensor names to new ones: the same name, else the same role, else by order."""
    roles = {_role_key(tensor): name for name, tensor in new.items() if tensor.role is not None}
    pairs = [name if name in new else roles.get(_role_key(tensor)) for name, tensor in old.items()]
    return list(new) if None in pairs and len(old) == len(new) else pairs


def _positions(*inputs: Mapping[str, IoTensor]) -> list[int]:
    """The first position, and the last at which all caches of both models have room."""
    tokens = max(
        (t.shape[-1] for tensors in inputs for t in tensors.values() if _kind(t) == "tokens"), default=1
    )
    rows = [
        tensor.shape[tensor.token_axis]
        for tensors in inputs
        for tensor in tensors.values()
        if tensor.token_axis is not None and _kind(tensor) in ("key_cache", "value_cache")
    ]
    return sorted({0, max(0, min(rows) - tokens)}) if rows else [0]


def _kind(tensor: IoTensor) -> str | None:
    return tensor.role.kind if tensor.role is not None else None


def _role_key(tensor: IoTensor) -> tuple[str, int | None] | None:
    """The kind and layer of a role, without its layout."""
    return (tensor.role.kind, tensor.role.layer) if tensor.role is not None else None


@dataclass(frozen=True)
class _Comparison:
    """A signature of the old model and its counterpart in the new one, run at one position."""

    old: LiteRtRunner
    name: str
    new: LiteRtRunner
    new_name: str
    position: int

    def run(self, tolerance: float) -> Iterator[float]:
        """Yield the relative difference of each output. Raises ModelError for one above the tolerance."""
        feeds, new_feeds = self._feeds()
        outputs, new_outputs = self.old.io[self.name][1], self.new.io[self.new_name][1]
        results, new_results = self.old.run(self.name, feeds), self.new.run(self.new_name, new_feeds)
        for key, new_key in zip(outputs, _paired_tensors(outputs, new_outputs), strict=True):
            if new_key is None:
                continue
            expected, tensor = _new_rows(results[key], outputs[key], new_outputs[new_key], self.position)
            actual = _adapted(new_results[new_key], new_outputs[new_key], tensor)
            if actual is None:
                shape = list(new_outputs[new_key].shape)
                raise ModelError(
                    f"--check: output {key} of {self.name} became {shape}, which cannot be compared"
                )
            difference = _difference(expected, actual)
            if difference > tolerance:
                raise ModelError(
                    f"--check: output {key} of {self.name} differs at position {self.position} by "
                    f"{difference:.1e} of its largest value; {self._first_difference(feeds, new_feeds)}"
                )
            yield difference

    def _feeds(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Random inputs, the same for both models."""
        inputs, new_inputs = self.old.io[self.name][0], self.new.io[self.new_name][0]
        feeds = _random_feeds(inputs, self.position)
        new_feeds = {}
        for key, new_key in zip(inputs, _paired_tensors(inputs, new_inputs), strict=True):
            if new_key is None:
                continue
            numbers = _adapted(feeds[key], inputs[key], new_inputs[new_key])
            if numbers is None:
                shape = list(new_inputs[new_key].shape)
                raise ModelError(
                    f"--check: input {key} of {self.name} became {shape}, which is not a "
                    f"supported change of shape"
                )
            new_feeds[new_key] = numbers
        if unknown := [key for key in new_inputs if key not in new_feeds]:
            raise ModelError(
                f"--check: the original model has no input that corresponds to {unknown[0]} "
                f"of {self.new_name}"
            )
        return feeds, new_feeds

    def _first_difference(self, feeds: Mapping[str, np.ndarray], new_feeds: Mapping[str, np.ndarray]) -> str:
        """Describe the first tensor that both models compute under one name and that differs."""
        new_tensors = dict(self.new.every_tensor(self.new_name, new_feeds))
        for tensor, expected in self.old.every_tensor(self.name, feeds):
            actual = new_tensors.get(tensor)
            if actual is None or actual.shape != expected.shape:
                continue
            if (difference := _difference(expected, actual)) > TOLERANCE:
                return f"the first tensor that differs is {tensor}, by {difference:.1e}"
        return "no intermediate tensor has the same name in both"


def _random_feeds(inputs: Mapping[str, IoTensor], position: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED + position)
    feeds = {}
    numbers: np.ndarray
    for name, tensor in inputs.items():
        if _kind(tensor) == "position":
            numbers = position + np.arange(int(np.prod(tensor.shape))).reshape(tensor.shape)
        elif tensor.dtype.kind in "iub":
            numbers = generator.integers(0, tensor.limit, tensor.shape)
        else:
            numbers = generator.standard_normal(tensor.shape)
        feeds[name] = numbers.astype(tensor.dtype)
    return feeds


def _adapted(numbers: np.ndarray, old: IoTensor, new: IoTensor) -> np.ndarray | None:
    """`numbers` of `old` in the layout, capacity, shape and dtype of `new`; None if they do not fit.

    Positions of several tokens count up from the first.
    """
    if _kind(old) == _kind(new) == "position":
        return (numbers.flat[0] + np.arange(int(np.prod(new.shape)))).reshape(new.shape).astype(new.dtype)
    if old.role is not None and new.role is not None and old.role.layout and new.role.layout:
        numbers = numbers.transpose([old.role.layout.index(axis) for axis in new.role.layout])
        axis = new.role.layout.index("T")
        missing = new.shape[axis] - numbers.shape[axis]
        if missing > 0:
            numbers = np.pad(numbers, [(0, missing if i == axis else 0) for i in range(numbers.ndim)])
        else:
            numbers = numbers.take(range(new.shape[axis]), axis)
    if numbers.size != np.prod(new.shape):
        return None
    return np.ascontiguousarray(numbers.reshape(new.shape).astype(new.dtype))


def _new_rows(
    numbers: np.ndarray, old: IoTensor, new: IoTensor, position: int
) -> tuple[np.ndarray, IoTensor]:
    """The rows of `old`, whole caches, that `new` returns: those from `position` on. For keys and values."""
    if (
        old.token_axis is None
        or new.token_axis is None
        or new.shape[new.token_axis] >= old.shape[old.token_axis]
    ):
        return numbers, old
    if _kind(old) not in ("key", "value"):
        return numbers, old
    numbers = numbers.take(range(position, position + new.shape[new.token_axis]), old.token_axis)
    return numbers, replace(old, shape=numbers.shape)


def _difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite for integers that differ."""
    if expected.dtype.kind not in "f":
        return 0.0 if np.array_equal(expected, actual) else np.inf
    if not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return np.inf
    finite = np.isfinite(expected)
    gap = np.abs(expected[finite].astype(np.float64) - actual[finite])
    return float(gap.max(initial=0) / max(1.0, np.abs(expected[finite]).max(initial=0)))
