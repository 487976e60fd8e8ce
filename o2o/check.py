"""Proof by running: the same inputs through a model before and after a filter, on LiteRT (`--check`).

Inputs and outputs are paired by their names in the signatures, or when they were renamed by what the contract
says that they are, else by their order.
What a filter may change is undone before comparing: shapes with as many elements, dtypes, layouts of caches
and the number of their rows. Both are run at the first position and at the last that both have.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.cli.silence_stderr import quiet
from o2o.cli.text import counted
from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.model import Model, attribute, shape_of
from o2o.operators.facts import PASS_THROUGH_OPS, facts_of, lookup_operands
from o2o.weights.binding import bind

TOLERANCE = 1e-4  # of the largest number of a float tensor, or of 1; other tensors must be equal
SEED = 0


@dataclass(frozen=True)
class Tensor:
    """What comparing needs to know of an input or output, as it was before lowering."""

    shape: tuple[int, ...]
    dtype: np.dtype
    role: Role | None
    limit: int  # integers from 0 to below this are sure to be taken

    @classmethod
    def of(cls, value: ir.Value) -> Tensor:
        if value.dtype is None:
            raise ModelError(f"--check: {value.name} has a dtype that cannot be fed or compared")
        return cls(shape_of(value), value.dtype.numpy(), role_of(value), min(_table_rows(value), default=2))

    @property
    def rows(self) -> int | None:
        """The token axis of a key, value or cache whose layout is known."""
        if self.role is None or self.role.layout is None:
            return None
        return self.role.layout.index("T")


def _table_rows(value: ir.Value) -> Iterator[int]:
    """The number of rows of each table in which `value` looks something up."""
    for node, operand in value.uses():
        if operand == facts_of(node).index and (lookup := lookup_operands(node)) is not None:
            table, _ = lookup
            yield shape_of(table)[attribute(node, "axis", 0)]
        elif operand == 0 and node.op_type in PASS_THROUGH_OPS:
            yield from _table_rows(node.outputs[0])


class Subject:
    """A model on LiteRT, lowered if it is Circle. `model` itself is not changed."""

    def __init__(self, model: Model, label: str) -> None:
        """Raises ModelError when LiteRT cannot take it."""
        from o2o.lower.litert.lowering import lower

        self.label = label
        self._folder = tempfile.TemporaryDirectory()  # models may be larger than memory
        formats.save(model, self._file("model"))
        copy = formats.load(self._file("model"))
        bind(copy, partial=True)
        copy.sign("main")
        inputs = {s.name: {n: Tensor.of(v) for n, v in s.inputs.items()} for s in copy.signatures}
        self.lowered = lower(copy)  # which gives out the caches that ATTENTION writes
        self.ends = {
            s.name: (inputs[s.name], {n: Tensor.of(v) for n, v in s.outputs.items()}) for s in copy.signatures
        }
        formats.save(self.lowered, self._file("lowered"))
        self._interpreter = self._load()

    def _file(self, name: str) -> str:
        return os.path.join(self._folder.name, name)

    def _load(self, **how: object) -> object:
        try:
            with quiet():  # LiteRT logs what it is made of
                from ai_edge_litert.interpreter import Interpreter

                interpreter = Interpreter(model_path=self._file("lowered"), **how)
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"--check: LiteRT cannot run {self.label}: {reason}") from error
        return interpreter

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of signature `name`, by their public names."""
        runner = self._interpreter.get_signature_runner(name)  # type: ignore[attr-defined]
        try:
            return {key: np.array(value) for key, value in runner(**feeds).items()}
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"--check: LiteRT cannot run {name} of {self.label}: {reason}") from error

    def every_tensor(self, name: str, feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Name and numbers of what signature `name` computes on the way, in order."""
        from ai_edge_litert.interpreter import OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # delegates keep no tensors
        interpreter = self._load(experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)
        interpreter.get_signature_runner(name)(**feeds)  # type: ignore[attr-defined]
        signature = next(s for s in self.lowered.signatures if s.name == name)
        index = self.lowered.graphs.index(signature.graph)
        details = interpreter.get_tensor_details(index)  # type: ignore[attr-defined]
        places = {detail["name"]: detail["index"] for detail in details}
        for node in signature.graph:
            for value in node.outputs:
                if value.name is not None and value.name in places:
                    numbers = interpreter.get_tensor(places[value.name], index)  # type: ignore[attr-defined]
                    yield value.name, numbers


def check(before: Sequence[Model], after: Model, tolerance: float | None = None) -> str:
    """Run the signatures of `before` and their counterparts in `after`; what was compared, in words.

    tolerance: how far outputs may be off, as a share of the largest number; TOLERANCE for None.
    Raises ModelError that names the first tensor that differs, and by how much, or says why the two cannot
    be compared.
    """
    new = Subject(after, "the result")
    subjects = [Subject(model, "the input") for model in before]
    olds = [(subject, name) for subject in subjects for name in subject.ends]
    compared, worst = 0, 0.0
    tolerance = TOLERANCE if tolerance is None else tolerance
    names = [name for _, name in olds]
    for (old, name), new_name in zip(olds, _in_its_place(names, list(new.ends)), strict=True):
        if new_name is None:
            continue
        for position in _positions(old.ends[name][0], new.ends[new_name][0]):
            count, difference = _compare(old, name, new, new_name, position, tolerance)
            compared, worst = compared + count, max(worst, difference)
    if not compared:
        raise ModelError("--check: the result has no output left that the input had")
    return (
        f"checked on LiteRT: {counted(compared, 'output')} the same, within {worst:.1e} of the largest number"
    )


def _in_its_place(old: Sequence[str], new: Sequence[str]) -> list[str | None]:
    """For each old name the same one, or, where names changed but their number did not, that in its place."""
    if len(old) == len(new) and not set(old) <= set(new):
        return list(new)
    return [name if name in new else None for name in old]


def _counterparts(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[str | None]:
    """For each old name the same one, else that of the same role, else that in its place."""
    roles = {_slot(tensor): name for name, tensor in new.items() if tensor.role is not None}
    found = [name if name in new else roles.get(_slot(tensor)) for name, tensor in old.items()]
    return list(new) if None in found and len(old) == len(new) else found


def _positions(*inputs: Mapping[str, Tensor]) -> list[int]:
    """The first position, and the last at which all caches of both models have room."""
    tokens = max((t.shape[-1] for ends in inputs for t in ends.values() if _kind(t) == "tokens"), default=1)
    rows = [
        tensor.shape[tensor.rows]
        for ends in inputs
        for tensor in ends.values()
        if tensor.rows is not None and _kind(tensor) in ("key_cache", "value_cache")
    ]
    return sorted({0, max(0, min(rows) - tokens)}) if rows else [0]


def _kind(tensor: Tensor) -> str | None:
    return tensor.role.kind if tensor.role is not None else None


def _slot(tensor: Tensor) -> tuple[str, int | None] | None:
    """What it is, in any layout."""
    return (tensor.role.kind, tensor.role.layer) if tensor.role is not None else None


def _compare(
    old: Subject, name: str, new: Subject, new_name: str, position: int, tolerance: float
) -> tuple[int, float]:
    """How many outputs were compared, and the largest relative difference. Raises ModelError."""
    old_inputs, old_outputs = old.ends[name]
    new_inputs, new_outputs = new.ends[new_name]
    feeds = _feeds(old_inputs, position)
    new_feeds = {}
    pairs = dict(zip(old_inputs, _counterparts(old_inputs, new_inputs), strict=True))
    for key, new_key in pairs.items():
        if new_key is not None:
            adapted = _adapted(feeds[key], old_inputs[key], new_inputs[new_key])
            if adapted is None:
                shape = list(new_inputs[new_key].shape)
                raise ModelError(f"--check: {key} became {shape}, for which its numbers do not do")
            new_feeds[new_key] = adapted
    if unknown := [key for key in new_inputs if key not in new_feeds]:
        raise ModelError(f"--check: nothing is known to feed the new input {unknown[0]} of {new_name} with")
    results, new_results = old.run(name, feeds), new.run(new_name, new_feeds)
    count, worst = 0, 0.0
    for key, new_key in zip(old_outputs, _counterparts(old_outputs, new_outputs), strict=True):
        if new_key is None:
            continue
        whole, part = old_outputs[key], new_outputs[new_key]
        expected, expectation = _new_rows(results[key], whole, part, position)
        found = _adapted(new_results[new_key], part, expectation)
        if found is None:
            shape = list(new_outputs[new_key].shape)
            raise ModelError(f"--check: {key} became {shape}, which cannot be compared")
        difference = _difference(expected, found)
        if difference > tolerance:
            where = _first_difference(old, name, feeds, new, new_name, new_feeds)
            raise ModelError(
                f"--check: {name} gives another {key} at position {position}, off by {difference:.1e} of its "
                f"largest number; {where}"
            )
        count, worst = count + 1, max(worst, difference)
    return count, worst


def _feeds(inputs: Mapping[str, Tensor], position: int) -> dict[str, np.ndarray]:
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


def _adapted(numbers: np.ndarray, old: Tensor, new: Tensor) -> np.ndarray | None:
    """`numbers` of `old` as `new` has them: other layout, rows, shape, dtype. None when they do not fit.

    Positions that are told for every token go on from the first.
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


def _new_rows(numbers: np.ndarray, old: Tensor, new: Tensor, position: int) -> tuple[np.ndarray, Tensor]:
    """Of keys or values, whole caches of `old`, those rows that `new` gives: from `position` on."""
    if old.rows is None or new.rows is None or new.shape[new.rows] >= old.shape[old.rows]:
        return numbers, old
    if _kind(old) not in ("key", "value"):
        return numbers, old
    numbers = numbers.take(range(position, position + new.shape[new.rows]), old.rows)
    return numbers, replace(old, shape=numbers.shape)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite for integers that differ."""
    if expected.dtype.kind not in "f":
        return 0.0 if np.array_equal(expected, found) else np.inf
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return np.inf
    finite = np.isfinite(expected)
    gap = np.abs(expected[finite].astype(np.float64) - found[finite])
    return float(gap.max(initial=0) / max(1.0, np.abs(expected[finite]).max(initial=0)))


def _first_difference(
    old: Subject,
    name: str,
    feeds: Mapping[str, np.ndarray],
    new: Subject,
    new_name: str,
    new_feeds: Mapping[str, np.ndarray],
) -> str:
    """The first tensor, in the order of `old`, that both compute under one name and that differs."""
    there = dict(new.every_tensor(new_name, new_feeds))
    for tensor, numbers in old.every_tensor(name, feeds):
        found = there.get(tensor)
        if found is not None and found.shape == numbers.shape and _difference(numbers, found) > TOLERANCE:
            return f"the first tensor that differs is {tensor}, by {_difference(numbers, found):.1e}"
    return "no tensor on the way has the same name in both"
