"""One signature before and after a filter: fed with the same numbers, each output compared.

Changes of shapes, dtypes, cache layouts and cache capacities are undone before. A difference that rounding
explains is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from o2o.check.activation_rounding import is_explained
from o2o.check.feeds import Case, random_feeds, window_row
from o2o.check.interface import ExpectedSignature
from o2o.check.runner import Arrays, Io, Results, Runner, Slot
from o2o.check.tensors import SMALLEST, adapted, caches_after, relative_difference, shared_rows
from o2o.errors import ModelError
from o2o.quantization.schemes import INT8

TOLERANCE = 1e-4
"""Relative to the largest number of a float tensor. Other tensors must be equal."""
PERTURBATION = 1e-6
"""Relative change of the inputs that shows how far rounding changes results."""
NOISE = 10.0
"""By how much rounding may exceed the effect of `PERTURBATION`."""
OUTLIER = 4.0
"""How often the tolerance the error of a single number may be, after quantization."""


class OriginalFails(Exception):
    """The original cannot be run on some inputs."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class SignatureComparison:
    """A signature of the result and its source, run on the inputs of one case.

    Attributes:
        old: Runs the original.
        new: Runs the result.
        expected: The signature, and what belongs together.
        case: The position and the kind of the inputs.
        tolerance: The largest difference, as a share of a tensor's largest number.
        rounding: `old` with rounded activations; None if weights were not quantized.
    """

    old: Runner
    new: Runner
    expected: ExpectedSignature
    case: Case
    tolerance: float
    rounding: Runner | None = None

    def __post_init__(self) -> None:
        self.before: Io = self.old.io[self.expected.source]
        self.after: Io = self.new.io[self.expected.name]
        if self.old.rounds_activations != self.new.rounds_activations:
            self.tolerance = max(self.tolerance, INT8.tolerance)

    def run(self) -> dict[str, float]:
        """Run both and compare each output.

        Returns:
            The largest difference of each output, as a share of its largest number.

        Raises:
            ModelError: An output differs by more than the tolerance.
            OriginalFails: The original cannot be run on these inputs.
        """
        self._refuse_handles()
        feeds = random_feeds(self.before.inputs, self.case)
        try:
            results = self.old.run(self.expected.source, feeds)
            missing = self._wanted_tensors()
            tensors = dict(self.old.every_tensor(self.expected.source, feeds, missing)) if missing else {}
        except ModelError as error:
            raise OriginalFails(error) from error
        new_feeds = self._new_feeds(feeds, tensors)
        new_results = self.new.run(self.expected.name, new_feeds)
        differences = {}
        for name, wanted, actual in self._pairs(results, new_results, feeds, new_feeds, tensors):
            if actual is None:
                raise ModelError(
                    f"--check: {name} of {self.expected.name} was {list(wanted.shape)}, and has "
                    "a shape now that cannot be compared"
                )
            difference = self._difference(wanted, actual, self._is_rounded(name))
            if difference > self.tolerance and not (
                self._is_noise(name, wanted, actual, feeds)
                or self._is_activation_rounding(name, wanted, actual, feeds)
            ):
                raise ModelError(
                    f"--check: {name} of {self.expected.name} differs at {self.case} by "
                    f"{_described(difference)} of its largest value; "
                    f"{self._first_difference(feeds, new_feeds)}"
                )
            differences[name] = min(difference, self.tolerance)
        return differences

    def _wanted_tensors(self) -> set[str]:
        """Tensors that the original does not return, from which inputs or results derive."""
        if self.expected.is_part:
            sources = (*self.expected.inputs.values(), *self.expected.outputs.values())
            return {tensor.source for tensor in sources}
        returned = {tensor.slot for tensor in self.before.outputs.values()}
        updated = {self.after.inputs[name].slot for name in self.after.updated} - returned
        appended = self.before.appended.items()
        return {rows for name, rows in appended if self.before.inputs[name].slot in updated - {None}}

    def _is_noise(self, name: str, wanted: np.ndarray, actual: np.ndarray, feeds: Arrays) -> bool:
        """Whether rounding explains a difference: of small numbers that are made from large ones."""
        output = self.expected.outputs.get(name.removeprefix("output "))
        if output is None or wanted.dtype.kind != "f" or wanted.shape != actual.shape:
            return False
        if not np.abs(wanted[np.isfinite(wanted)]).max(initial=0) < 1:
            return False
        signs = np.random.default_rng(0)
        perturbed = {
            key: (x * (1 + PERTURBATION * signs.choice((-1, 1), x.shape))).astype(x.dtype)
            if x.dtype.kind == "f"
            else x
            for key, x in feeds.items()
        }
        other = self.old.run(self.expected.source, perturbed).outputs.get(output.source)
        if other is None or other.shape != wanted.shape:
            return False
        with np.errstate(all="ignore"):
            noise = np.abs(other.astype(np.float64) - wanted).max(initial=0)
            gap = np.abs(actual.astype(np.float64) - wanted).max(initial=0)
        return bool(gap <= NOISE * noise <= self.tolerance)

    def _is_activation_rounding(
        self, name: str, wanted: np.ndarray, actual: np.ndarray, feeds: Arrays
    ) -> bool:
        """Whether an error is as large as the effect of rounded activations."""
        output = self.expected.outputs.get(name.removeprefix("output "))
        if self.rounding is None or output is None or not self.new.rounds_activations:
            return False
        if (
            wanted.dtype.kind != "f"
            or wanted.shape != actual.shape
            or output.source not in self.before.outputs
        ):
            return False
        error = actual.astype(np.float64) - wanted
        return is_explained(self.old, self.rounding, self.expected.source, output.source, feeds, error)

    def _difference(self, wanted: np.ndarray, actual: np.ndarray, rounded: bool = False) -> float:
        """The difference that counts. Where weights were quantized, that is the error of most numbers."""
        difference = relative_difference(wanted, actual, rounded)
        if self.tolerance <= TOLERANCE or not np.isfinite(difference) or wanted.dtype.kind != "f":
            return difference
        finite = np.isfinite(wanted)
        squares = np.square(wanted[finite], dtype=np.float64).sum()
        errors = np.square(actual[finite].astype(np.float64) - wanted[finite]).sum()
        return max(float(np.sqrt(errors / max(squares, SMALLEST**2))), difference / OUTLIER)

    def _is_rounded(self, output: str) -> bool:
        name = output.removeprefix("output ")
        return name in self.after.outputs and self.after.outputs[name].quantized

    def _refuse_handles(self) -> None:
        """Resources and variants can neither be fed nor compared: an engine may crash on them."""
        for io, which in ((self.before, self.old), (self.after, self.new)):
            for kind, tensors in (("input", io.inputs), ("output", io.outputs)):
                for name, tensor in tensors.items():
                    if tensor.dtype is None:
                        raise ModelError(
                            f"--check: {kind} {name} of {which.label} has a type that cannot be "
                            "fed or compared"
                        )

    def _new_feeds(self, feeds: Arrays, tensors: Arrays) -> Arrays:
        """The inputs of the result, from those of the original."""
        new_feeds = {}
        named = {tensor.tensor: feeds[name] for name, tensor in self.before.inputs.items()}
        for name, tensor in self.expected.inputs.items():
            if self.expected.is_part:
                numbers = named.get(tensor.source, tensors.get(tensor.source))
                if numbers is None:
                    raise ModelError(
                        f"--check: the original computes no {tensor.source} to feed to input {name}"
                    )
                new_feeds[name] = numbers
                continue
            numbers = adapted(
                feeds[tensor.source],
                self.before.inputs[tensor.source],
                self.after.inputs[name],
                first=self._first_position,
            )
            if numbers is None:
                shape = list(self.after.inputs[name].shape)
                raise ModelError(
                    f"--check: input {tensor.source} of {self.expected.source} became {shape}, "
                    "which is not a supported change of shape"
                )
            new_feeds[name] = numbers
        return new_feeds

    @property
    def _first_position(self) -> int:
        """The position in row 0 of the window caches that the result has in place of full caches."""
        return self.case.position - window_row(self.after.inputs, self.case.position)

    def _pairs(
        self, results: Results, new_results: Results, feeds: Arrays, new_feeds: Arrays, tensors: Arrays
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """What was compared, its numbers in the original, and those of the result in the same form."""
        before, after = self.before, self.after
        if self.expected.is_part:
            of_outputs = {t.tensor: results.outputs[name] for name, t in before.outputs.items()}
            of_inputs = {t.tensor: feeds[name] for name, t in before.inputs.items()}
            known = of_inputs | of_outputs | tensors
            for name, tensor in self.expected.outputs.items():
                if tensor.source not in known:
                    raise ModelError(
                        f"--check: the original computes no {tensor.source} to compare {name} with"
                    )
                yield f"output {name}", known[tensor.source], new_results.outputs[name]
            return
        old_caches = caches_after(before, results, feeds, tensors, self.case.position)
        new_caches = caches_after(after, new_results, new_feeds, {}, self.case.position)
        for name, tensor in self.expected.outputs.items():
            if name not in after.outputs:
                continue  # a cache that the result updates in place: compared below
            old, new = before.outputs[tensor.source], after.outputs[name]
            wanted, actual = results.outputs[tensor.source], new_results.outputs[name]
            if old.slot is not None and old.slot in old_caches and old.slot in new_caches:
                if old.token_axis is None or new.token_axis is None:
                    yield f"output {name}", wanted, adapted(actual, new, old)
                    continue
                a, b = old_caches[old.slot], new_caches[old.slot]
                if new.is_window_cache and not old.is_window_cache:
                    a = a[:, :, self._first_position :]
                yield f"output {name}", *shared_rows(a, b)
            else:
                yield f"output {name}", wanted, adapted(actual, new, old, wanted.shape)
        slots = {t.slot for io in (before, after) for t in io.outputs.values()}
        names = {io.inputs[name].slot: name for io in (before, after) for name in io.updated}
        for slot, name in names.items():  # written in place by one of them
            if slot is None or (slot in slots and slot in _output_slots(before, after, self.expected)):
                continue
            if slot in old_caches and slot in new_caches:
                yield f"the updated cache {name}", *shared_rows(old_caches[slot], new_caches[slot])

    def _first_difference(self, feeds: Arrays, new_feeds: Arrays) -> str:
        """Describe the first tensor that both models compute under one name and that differs."""
        new_tensors = dict(self.new.every_tensor(self.expected.name, new_feeds))
        for tensor, wanted in self.old.every_tensor(self.expected.source, feeds):
            actual = new_tensors.get(tensor)
            if actual is None or actual.size != wanted.size or _squeezed(actual) != _squeezed(wanted):
                continue
            difference = self._difference(wanted, actual.reshape(wanted.shape))
            if difference > self.tolerance:
                return f"the first tensor that differs is {tensor}, by {_described(difference)}"
        return "no intermediate tensor of the same name differs"


def _described(difference: float) -> str:
    return "more than any share" if difference == np.inf else f"{difference:.1e}"


def _squeezed(numbers: np.ndarray) -> list[int]:
    return [dim for dim in numbers.shape if dim != 1]


def _output_slots(before: Io, after: Io, expected: ExpectedSignature) -> set[Slot | None]:
    """The slots that both return as outputs."""
    return {
        after.outputs[name].slot
        for name, tensor in expected.outputs.items()
        if name in after.outputs and tensor.source in before.outputs
    }
