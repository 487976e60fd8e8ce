"""Compare two models: the same inputs through a model before and after a filter.

Which inputs and outputs belong together is `interface`. A filter may change shapes, dtypes, cache layouts and
cache capacities. Such changes are undone before comparing. Each model runs as it is on LiteRT, or by the
operators' meaning in numpy if it has operators that LiteRT lacks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from o2o import formats
from o2o.check.activation_rounding import is_explained, round_activations
from o2o.check.constants import refuse_changed_constants, replace_rounded_constants
from o2o.check.derived_roles import derive_roles, share_derived_roles
from o2o.check.feeds import Case, cases, random_feeds, window_row
from o2o.check.interface import (
    Expected,
    ExpectedSignature,
    name_all,
    paired,
    refuse_changed_interface,
    signature_of,
    unchanged,
)
from o2o.check.litert_runner import LiteRtRunner
from o2o.check.reference_runner import alike, on_own_kernels, runner_of, runners_of_result
from o2o.check.runner import UNNAMED, Arrays, Io, Results, Runner, Slot, signatures_io
from o2o.check.small_tables import scale_constants, tables_of
from o2o.check.tensors import SMALLEST, adapted, caches_after, relative_difference, shared_rows
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.formats.tensor_order import tensor_order
from o2o.model import Model
from o2o.quantization.schemes import INT8
from o2o.streams.temporary import temporary_folder
from o2o.weights.binding import bind

TOLERANCE = 1e-4
"""Relative to the largest number of a float tensor. Other tensors must be equal."""
PERTURBATION = 1e-6
"""Relative change of the inputs that shows how far rounding changes results."""
NOISE = 10.0
"""By how much rounding may exceed the effect of `PERTURBATION`."""
MAIN = "main"
"""The name of a signature for a main graph that has none."""
_MAIN_NAME = "name of the main signature"
"""The metadata entry with that name, in the copies that are compared."""
OUTLIER = 4.0
"""How often the tolerance the error of a single number may be, after quantization."""


def check(
    before: Sequence[Model], after: Model, expected: Expected | None = None, tolerance: float = TOLERANCE
) -> str:
    """Run the signatures of `after` and those that they derive from, and compare the outputs.

    Args:
        before: The models that a filter read.
        after: Its result.
        expected: The interface that the result must have; None for that of `before`.
        tolerance: The largest difference, as a share of a tensor's largest number.

    Returns:
        A sentence for the user: how many outputs were compared, and the largest difference.

    Raises:
        ModelError: An output differs (the first tensor that does is named), or the two cannot be compared.
    """
    with temporary_folder() as folder:  # models may be larger than memory
        olds = [
            copied(model, os.path.join(folder, f"before_{number}")) for number, model in enumerate(before)
        ]
        new = copied(after, os.path.join(folder, "after"))
        expected = unchanged(olds) if expected is None else expected
        share_derived_roles(expected, olds, new)
        refuse_changed_interface(expected, [signatures_io(model) for model in olds], signatures_io(new))
        for signature in expected:
            graph = next(s.graph for s in new.signatures if s.name == signature.name)
            refuse_changed_constants(signature.name, signature_of(olds, signature).graph, graph)
        report = _Report()
        names = "the original", "the result"
        paths = [os.path.join(folder, f"before_{number}") for number in range(len(olds))]
        path = os.path.join(folder, "after")
        if tolerance <= TOLERANCE:
            _compare(olds, new, expected, tolerance, names, report)
            _compare_small(paths, path, expected, tolerance, names, report)
        else:
            rounded = functools.partial(_rounded_originals, paths, path, expected)
            _compare(olds, new, expected, tolerance, names, report, rounded=rounded)
        return report.sentence()


def check_models(first: Model, second: Model, tolerance: float, names: tuple[str, str]) -> str:
    """Run two models of any history and compare the outputs.

    Args:
        first: A model.
        second: Another, with as many signatures, inputs and outputs.
        tolerance: The largest difference, as a share of a tensor's largest number.
        names: What the models are called in messages.

    Returns:
        A sentence for the user: how many outputs were compared, and the largest difference.

    Raises:
        ModelError: An output differs (the first tensor that does is named), or the two cannot be compared.
    """
    with temporary_folder() as folder:
        old, new = (
            copied(model, os.path.join(folder, name), is_completed=False)
            for model, name in ((first, "a"), (second, "b"))
        )
        share_derived_roles(paired(signatures_io(old), signatures_io(new), same_outputs=True), [old], new)
        expected = paired(signatures_io(old), signatures_io(new))
        report = _Report()
        _compare([old], new, expected, tolerance, names, report)
        return report.sentence()


def _compare_small(
    olds: Sequence[str],
    new: str,
    expected: Expected,
    tolerance: float,
    names: tuple[str, str],
    report: _Report,
) -> None:
    """Compare the signatures that look tokens up once more, with small embeddings."""
    befores, after = [loaded(path) for path in olds], loaded(new)
    tables = [tables_of(model) for model in befores]
    new_tables = tables_of(after)
    chosen = []
    for entry in expected:
        old = tables[entry.model].get(entry.source)
        if old is None or entry.is_part or old.keys() != new_tables.get(entry.name, {}).keys():
            continue
        chosen.append(entry)
    if not chosen:
        return
    share_derived_roles(expected, befores, after)
    for model, of_model in zip(befores, tables, strict=True):
        every = {f"{s} {n}": x for s, some in of_model.items() for n, x in some.items()}
        for graph in model.graphs:
            scale_constants(graph.initializers, every)
    every = {f"{s} {n}": x for s, some in new_tables.items() for n, x in some.items()}
    for graph in after.graphs:
        scale_constants(graph.initializers, every)
    _compare(befores, after, chosen, tolerance, names, report, [Case()])


def _compare(
    olds: Sequence[Model],
    new: Model,
    expected: Expected,
    tolerance: float,
    names: tuple[str, str],
    report: _Report,
    only: Sequence[Case] | None = None,
    rounded: Callable[[], list[_Rounded] | None] = lambda: None,
) -> None:
    """Run copies of the models. Raises ModelError for an output that differs.

    Where one does, `rounded` gives the originals with the weights of the result. What differs from them too
    is not explained by the rounding of weights.
    """
    originals = [runner_of(model, names[0], or_numpy=True) for model in olds]  # first: they may fail
    try:
        results = runners_of_result(new, names[1], or_numpy=any(runner.refusal for runner in originals))
    except ModelError:
        for signature in expected:
            _refuse_false_dtypes(originals[signature.model], olds[signature.model], signature)
        raise
    for signature in expected:
        for runner in results:
            # Inner tensors of the original are read on kernels that no delegate replaces.
            result = on_own_kernels(runner) if signature.is_part else runner
            original = alike(originals[signature.model], result)
            try:
                _compare_signature(original, result, signature, tolerance, report, only)
            except ModelError:
                known = rounded()
                if known is None:
                    raise
                plain, rounding = known[signature.model]
                plain = alike(plain, result)
                _compare_signature(plain, result, signature, tolerance, report, only, rounding)
            _refuse_failed_delegate(original, runner)


def _refuse_false_dtypes(original: Runner, model: Model, expected: ExpectedSignature) -> None:
    """Refuse a part of an original whose file names other dtypes than an engine computes."""
    if not expected.is_part:
        return
    wanted = {tensor.source for tensor in expected.inputs.values()}
    feeds = random_feeds(original.io[expected.source].inputs, Case())
    computed = dict(original.every_tensor(expected.source, feeds, wanted))
    for node in signature_of([model], replace(expected, model=0)).graph:
        for value in node.outputs:
            numbers = computed.get(value.name or "")
            if numbers is not None and value.dtype is not None and numbers.dtype != value.dtype.numpy():
                raise ModelError(
                    f"--check: {value.name} of the original is {value.dtype.numpy()} in the file, and "
                    f"{original.engine} computes {numbers.dtype}: no part that takes it can be run"
                )


def _refuse_failed_delegate(original: Runner, result: Runner) -> None:
    """Refuse a result that LiteRT runs without its delegate alone, where it ran the original with it."""
    if not (isinstance(result, LiteRtRunner) and isinstance(original, LiteRtRunner)):
        return
    if result.delegate_failure and not original.delegate_failure:
        raise ModelError(
            "--check: XNNPACK, which LiteRT uses by default, cannot run the result: "
            f"{result.delegate_failure}"
        )


_Rounded = tuple[Runner, Runner]
"""An original with the weights of the result; and the same with rounded activations."""


def _rounded_originals(paths: Sequence[str], path: str, expected: Expected) -> list[_Rounded] | None:
    """The originals, with the numbers that quantized weights of the result stand for; None if it has none.

    `refuse_changed_constants` has compared each of these with the weight that it stands for.
    """
    runners: list[list[Runner]] = []
    is_rounded = False
    for rounds_activations in (False, True):
        olds, new = [loaded(old) for old in paths], loaded(path)
        share_derived_roles(expected, olds, new)
        graphs = {
            signature_of(olds, entry).graph: next(s.graph for s in new.signatures if s.name == entry.name)
            for entry in expected
        }
        for graph, of_result in graphs.items():
            weights = replace_rounded_constants(graph, of_result)
            is_rounded |= bool(weights)
            if rounds_activations:
                round_activations(graph, weights)
        runners.append([runner_of(old, "the original", or_numpy=True) for old in olds])
    return list(zip(*runners, strict=True)) if is_rounded else None


def copied(model: Model, path: str, is_completed: bool = True) -> Model:
    """Return what a file of a model holds, with its weights.

    Names of tensors are those of `model`, where each is unique: a file may have one name for several tensors.

    Args:
        model: The model. It is not changed.
        path: Where to write the file. It must exist as long as the result.
        is_completed: See `loaded`.

    Returns:
        A copy, in which a main graph without a signature has one called `main`.

    Raises:
        ModelError: Weights are missing.
    """
    names = {}
    for graph in model.graphs if model.format != "onnx" else ():
        for value in tensor_order(graph):
            if "name" in value.meta:
                names[value] = value.meta.pop("name")
    metadata = model.metadata
    try:
        if model.format == "onnx":  # a file of ONNX has the name of a signature only with roles
            main = next((s.name for s in model.signatures_of(model.graphs[0])), MAIN)
            model.metadata = [*metadata, (_MAIN_NAME, main.encode())]
        formats.save(model, path)
    finally:
        model.metadata = metadata
        for value, name in names.items():
            value.meta["name"] = name
    copy = loaded(path, is_completed)
    for graph, other in zip(model.graphs, copy.graphs, strict=True):
        if UNNAMED in graph.meta:  # `name_all` has named them in `model`, and so in the file
            other.meta[UNNAMED] = graph.meta[UNNAMED] | other.meta.get(UNNAMED, set())
    return copy


def loaded(path: str, is_completed: bool = True) -> Model:
    """Read a model, with its weights and with roles for caches and positions.

    Args:
        path: The file.
        is_completed: Complete the signatures, see `interface.name_all`.

    Returns:
        The model.

    Raises:
        ModelError: Weights are missing.
    """
    copy = formats.load(path)
    bind(copy, partial=True)
    copy.add_default_signature(dict(copy.metadata).get(_MAIN_NAME, MAIN.encode()).decode())
    if is_completed:
        name_all(copy)
    derive_roles(copy)
    return copy


@dataclass
class _Report:
    """What was compared."""

    outputs: set[tuple[str, str]] = field(default_factory=set)
    runs: int = 0
    largest: float = 0.0
    engines: dict[str, None] = field(default_factory=dict)

    def sentence(self) -> str:
        if not self.outputs:
            raise ModelError("--check: the original has no outputs to compare")
        return (
            f"checked on {' and '.join(self.engines)}: {counted(len(self.outputs), 'output')} the same, "
            f"within {self.largest:.1e} of the largest number, in {counted(self.runs, 'run')}"
        )


def _compare_signature(
    old: Runner,
    new: Runner,
    expected: ExpectedSignature,
    tolerance: float,
    report: _Report,
    only: Sequence[Case] | None,
    rounding: Runner | None = None,
) -> None:
    """Run a signature and its source on all cases. Raises ModelError where they differ."""
    inputs = old.io[expected.source].inputs
    failure: _OriginalFails | None = None
    succeeded = False
    for case in cases(inputs, new.io[expected.name].inputs) if only is None else only:
        if case.is_last_resort and succeeded:
            break
        try:
            differences = _Comparison(old, new, expected, case, tolerance, rounding).run()
        except _OriginalFails as error:
            failure = failure or error
            continue
        succeeded = True
        report.outputs.update((expected.name, output) for output in differences)
        report.runs += 1
        report.largest = max(report.largest, *differences.values(), 0.0)
        report.engines |= dict.fromkeys((old.engine, new.engine))
    if failure is not None and not succeeded:
        raise failure.error from failure


class _OriginalFails(Exception):
    """The original cannot be run on some inputs."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Comparison:
    """A signature of the result and its source, run on the inputs of one case."""

    old: Runner
    new: Runner
    expected: ExpectedSignature
    case: Case
    tolerance: float
    rounding: Runner | None = None  # `old` with rounded activations

    def __post_init__(self) -> None:
        self.before: Io = self.old.io[self.expected.source]
        self.after: Io = self.new.io[self.expected.name]
        if self.old.rounds_activations != self.new.rounds_activations:
            self.tolerance = max(self.tolerance, INT8.tolerance)

    def run(self) -> dict[str, float]:
        """Run both, and return the difference of each output. Raises ModelError for one that is too large."""
        self._refuse_handles()
        feeds = random_feeds(self.before.inputs, self.case)
        try:
            results = self.old.run(self.expected.source, feeds)
            missing = self._wanted_tensors()
            tensors = dict(self.old.every_tensor(self.expected.source, feeds, missing)) if missing else {}
        except ModelError as error:
            raise _OriginalFails(error) from error
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
