"""Compare two models: the same inputs through a model before and after a filter.

Which inputs and outputs belong together is `interface`. A filter may change shapes, dtypes, cache layouts and
cache capacities. Such changes are undone before comparing. Each model runs as it is on LiteRT, or by the
operators' meaning in numpy if it has operators that LiteRT lacks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from o2o.check.activation_rounding import round_activations
from o2o.check.constants import refuse_changed_constants, replace_rounded_constants
from o2o.check.derived_roles import share_derived_roles
from o2o.check.feeds import Case, cases, random_feeds
from o2o.check.interface import (
    Expected,
    ExpectedSignature,
    paired,
    refuse_changed_interface,
    signature_of,
    unchanged,
)
from o2o.check.litert_runner import LiteRtRunner
from o2o.check.model_copies import copied, loaded
from o2o.check.reference_runner import alike, on_own_kernels, runner_of, runners_of_result
from o2o.check.runner import Runner, signatures_io
from o2o.check.signature_comparison import TOLERANCE, OriginalFails, SignatureComparison
from o2o.check.small_tables import scale_constants, tables_of
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.model import Model
from o2o.streams.temporary import temporary_folder


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
    failure: OriginalFails | None = None
    succeeded = False
    for case in cases(inputs, new.io[expected.name].inputs) if only is None else only:
        if case.is_last_resort and succeeded:
            break
        try:
            differences = SignatureComparison(old, new, expected, case, tolerance, rounding).run()
        except OriginalFails as error:
            failure = failure or error
            continue
        succeeded = True
        report.outputs.update((expected.name, output) for output in differences)
        report.runs += 1
        report.largest = max(report.largest, *differences.values(), 0.0)
        report.engines |= dict.fromkeys((old.engine, new.engine))
    if failure is not None and not succeeded:
        raise failure.error from failure
