"""`--check` of lower.onnx.py: the decode graph as it is, and the ONNX model on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.check.engine_process import ENGINE, EngineFailure
from o2o.check.feeds import SEED
from o2o.check.model_copies import copied, loaded
from o2o.check.reference_runner import runner_of
from o2o.check.runner import IoTensor, Slot
from o2o.check.signature_comparison import TOLERANCE
from o2o.check.small_tables import scale_constants, token_tables
from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.formats.tensors import constant_array, is_quantized
from o2o.model import Model, dims_of, dtype_name
from o2o.quantization.schemes import INT8
from o2o.signatures import decode_of
from o2o.streams.temporary import temporary_folder

FLOAT = ir.DataType.FLOAT
TOKENS = 6
"""Tokens to read from position 0 on: all but the last in one run of ONNX."""


def check(before: Model, lowered: Model) -> str:
    """Run both models on the same tokens, at the beginning and at the end of the caches.

    Each runtime rounds activations its own way before it multiplies quantized weights. Such models get the
    tolerance of int8 quantization.

    Args:
        before: The Circle model before lowering.
        lowered: The ONNX model of its decode graph.

    Returns:
        A sentence for the user: the runtimes and the largest difference.

    Raises:
        ModelError: Logits or caches differ, or ONNX Runtime is missing or rejects the model.
    """
    with temporary_folder() as folder:  # models may be larger than memory
        circle = _CircleRunner(copied(before, os.path.join(folder, "before")))
        path = folder / "model.onnx"
        formats.save(lowered, path)
        worst = max(_differences(circle, path, lowered))
        _refuse_changed_constants(decode_of(loaded(os.path.join(folder, "before"))).graph, lowered)
        worst = max([worst, *_small_differences(os.path.join(folder, "before"), lowered, str(folder))])
    return (
        f"checked on ONNX Runtime against {circle.engine}: the same, within {worst:.1e} of the largest number"
    )


def _refuse_changed_constants(graph: ir.Graph, lowered: Model) -> None:
    """Compare the constants of floats that both models have under one name and in one shape.

    A run reads few rows of an embedding table.
    """
    for name, value in graph.initializers.items():
        other = lowered.graphs[0].initializers.get(name)
        numbers = constant_array(value)
        if numbers is None or other is None or other.const_value is None or other.dtype != value.dtype:
            continue
        actual = other.const_value.numpy()
        if actual.shape == numbers.shape and not np.array_equal(actual, numbers):
            raise ModelError(f"--check: constant {name} has other numbers than before")


def _small_differences(before: str, lowered: Model, folder: str) -> Iterator[float]:
    """Yield the differences with small embeddings, where both models have the tables."""
    model = loaded(before)
    tables = token_tables(decode_of(model).graph)
    constants = lowered.graphs[0].initializers
    if tables is None or any(name not in constants or constants[name].dtype != FLOAT for name in tables):
        return
    scale_constants(decode_of(model).graph.initializers, tables)
    tensors = {name: value.const_value for name, value in constants.items()}
    try:
        scale_constants(constants, tables)
        path = Path(folder) / "small.onnx"
        formats.save(lowered, path)
    finally:
        for name, tensor in tensors.items():
            constants[name].const_value = tensor
    circle = _CircleRunner(model)
    yield from _differences(circle, path, lowered)


def _differences(circle: _CircleRunner, path: Path, lowered: Model) -> Iterator[float]:
    """Yield the difference of each result. Raises ModelError for one above the tolerance."""
    onnx = _OnnxRunner(path, circle, lowered)
    count = min(TOKENS, circle.capacity - 1)
    ids = np.random.default_rng(SEED).integers(0, circle.limit, count + 1)
    expected = [circle.step(int(token), position) for position, token in enumerate(ids[:count])]
    runs = [(0, ids[: count - 1]), (count - 1, ids[count - 1 : count])] if count > 1 else [(0, ids[:count])]
    where = _Place(circle, path, lowered, ids[:count])
    for start, some in runs:
        logits = onnx.step(some, start)
        positions = range(start, start + len(some))[-len(logits) :]
        for position, of_token in zip(positions, logits, strict=True):
            yield where.difference("logits", position, expected[position], of_token)
    position = circle.capacity - 1
    logits = onnx.step(ids[count:], position)
    yield where.difference("logits", position, circle.step(int(ids[count]), position), logits[-1])
    for slot, cache in circle.caches.items():
        yield where.difference(f"{slot[0]} of layer {slot[1]}", position, cache, onnx.caches[slot])


class _Place:
    """Comparison of results; the first tensor that differs is found where they do."""

    def __init__(self, circle: _CircleRunner, path: Path, lowered: Model, ids: np.ndarray) -> None:
        self.circle, self.path, self.lowered, self.ids = circle, path, lowered, ids

    def difference(self, name: str, position: int, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the largest error relative to the largest number. Raises ModelError above the tolerance."""
        difference = _relative(expected, actual)
        if not difference <= self.circle.tolerance:  # NaN fails too
            raise ModelError(
                f"--check: {name} at position {position} differs between ONNX Runtime and "
                f"{self.circle.engine} by {difference:.1e} of its largest value; {self._first_difference()}"
            )
        return difference

    def _first_difference(self) -> str:
        """Describe the first tensor that both models compute under one name and that differs."""
        expected = {name: x for name, x in self.circle.every_tensor(self.ids) if x.dtype.kind == "f"}
        path = _with_outputs(self.path, set(expected))
        actual = _OnnxRunner(path, self.circle, self.lowered).every_tensor(self.ids)
        for name, numbers in expected.items():
            if name in actual and actual[name].size == numbers.size:
                difference = _relative(numbers, actual[name].reshape(numbers.shape))
                if not difference <= self.circle.tolerance:
                    return f"the first tensor that differs is {name}, by {difference:.1e}"
        return f"no intermediate tensor of the same name differs at position {len(self.ids) - 1}"


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        return np.inf
    gap = np.abs(expected.astype(np.float64) - actual).max(initial=0)
    return float(gap / max(1.0, np.abs(expected).max(initial=0)))


def _with_outputs(path: Path, names: set[str]) -> Path:
    """A copy of an ONNX file that also returns its tensors of these names."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    known = {output.name for output in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name in names - known:
                proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
                proto.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    copy = path.with_name("tensors.onnx")
    copy.write_bytes(proto.SerializeToString())
    return copy


class _CircleRunner:
    """The decode graph, one token at a time, with its caches."""

    def __init__(self, model: Model) -> None:
        decode = decode_of(model)
        quantized = any(is_quantized(value) for value in decode.graph.initializers.values())
        self.tolerance = INT8.tolerance if quantized else TOLERANCE
        self._name = decode.name
        self._runner = runner_of(model, "the original", or_numpy=True)
        io = self._runner.io[self._name]
        self._io = io
        self._caches: dict[Slot, np.ndarray] = {
            tensor.slot: np.zeros(tensor.shape, tensor.dtype)
            for tensor in io.inputs.values()
            if tensor.slot is not None
        }
        axes = [(tensor.shape, tensor.token_axis) for tensor in io.inputs.values() if tensor.slot is not None]
        self.capacity = min(shape[axis] for shape, axis in axes if axis is not None)
        self.limit = next(tensor.limit for tensor in io.inputs.values() if tensor.kind == "tokens")
        self.slots = list(self._caches)

    @property
    def engine(self) -> str:
        return self._runner.engine

    def _feeds(self, token: int, position: int) -> dict[str, np.ndarray]:
        def numbers(tensor: IoTensor) -> np.ndarray | int:
            if tensor.slot is not None:
                return self._caches[tensor.slot]
            return token if tensor.kind == "tokens" else position

        return {
            name: np.broadcast_to(numbers(tensor), tensor.shape).astype(tensor.dtype)
            for name, tensor in self._io.inputs.items()
        }

    def step(self, token: int, position: int) -> np.ndarray:
        """Run one token; return its logits [V]."""
        results = self._runner.run(self._name, self._feeds(token, position))
        logits = next(name for name, tensor in self._io.outputs.items() if tensor.kind == "logits")
        for name, tensor in self._io.outputs.items():
            if tensor.slot is not None:
                self._caches[tensor.slot] = results.outputs[name]
        for name, cache in results.updated.items():
            slot = self._io.inputs[name].slot
            if slot is not None:
                self._caches[slot] = cache
        return results.outputs[logits].reshape(-1)

    def every_tensor(self, ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Run tokens on empty caches; yield each tensor of the last one."""
        self._caches = {slot: np.zeros_like(cache) for slot, cache in self._caches.items()}
        for position, token in enumerate(ids[:-1]):
            self.step(int(token), position)
        yield from self._runner.every_tensor(self._name, self._feeds(int(ids[-1]), len(ids) - 1))

    @property
    def caches(self) -> dict[Slot, np.ndarray]:
        """The KV caches [K, S, H]."""
        caches = {}
        for tensor in self._io.inputs.values():
            if tensor.slot is not None:
                assert tensor.role is not None
                assert tensor.role.layout is not None
                axes = [tensor.role.layout.index(axis) for axis in "BNTH"]
                caches[tensor.slot] = self._caches[tensor.slot].transpose(axes)[0]
        return caches


class _OnnxRunner:
    """The ONNX model on ONNX Runtime, any number of tokens at a time. Roles say what its inputs are."""

    def __init__(self, path: Path, circle: _CircleRunner, lowered: Model) -> None:
        self._key = ENGINE.new_key()
        _request("load_onnx", self._key, str(path))
        graph = lowered.graphs[0]
        self._inputs = [(value, role) for value in graph.inputs if (role := role_of(value)) is not None]
        self._outputs = {role: value.name for value in graph.outputs if (role := role_of(value)) is not None}
        self._shapes: dict[Slot, list[int]] = {
            role.slot: [dim if isinstance(dim, int) else circle.capacity for dim in dims_of(value) or ()]
            for value, role in self._inputs
            if role.is_cache
        }
        if self._shapes.keys() != set(circle.slots):
            raise ModelError(
                f"--check: the ONNX model takes the caches {sorted(self._shapes)}, not {sorted(circle.slots)}"
            )
        returned = {role.slot for role in self._outputs if role.is_rows}
        if lost := [
            value.name for value, role in self._inputs if role.is_cache and role.slot not in returned
        ]:
            name = (lost[0] or "").replace("past", "present", 1)
            raise ModelError(f"--check: output {name} disappeared: nothing returns the cache {lost[0]}")
        self._caches = self._empty()

    def _empty(self) -> dict[Slot, np.ndarray]:
        return {slot: np.zeros(shape, np.float32) for slot, shape in self._shapes.items()}

    def _run(self, ids: np.ndarray, position: int) -> dict[str, np.ndarray]:
        numbers: dict[str, np.ndarray] = {
            "tokens": ids[None],
            "position": np.array([position]),
            "window_row": np.array([position]),
            "mask": np.ones((1, position + len(ids))),
        }
        feeds = {
            value.name: self._caches[role.slot]
            if role.is_cache
            else numbers[role.kind].astype(dtype_name(value))
            for value, role in self._inputs
        }
        results: dict[str, np.ndarray] = _request("run_onnx", self._key, feeds)
        if missing := sorted({name or "" for name in self._outputs.values()} - results.keys()):
            raise ModelError(f"--check: output {missing[0]} disappeared")
        return results

    def step(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Run these tokens; return the logits [T, V] of all or [1, V] of the last one."""
        results = self._run(ids, position)
        present = {role.slot: name or "" for role, name in self._outputs.items() if role.is_rows}
        self._caches = {slot: results[name] for slot, name in present.items()}
        (name,) = (name or "" for role, name in self._outputs.items() if role.kind == "logits")
        logits: np.ndarray = results[name][0]
        return logits

    def every_tensor(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Run tokens on empty caches; return all outputs of the last one."""
        self._caches = self._empty()
        for position in range(len(ids) - 1):
            self.step(ids[position : position + 1], position)
        return self._run(ids[-1:], len(ids) - 1)

    @property
    def caches(self) -> dict[Slot, np.ndarray]:
        """The KV caches [K, S, H]."""
        return {slot: cache[0] for slot, cache in self._caches.items()}


def _request(*request: Any) -> Any:
    try:
        return ENGINE.request(*request)
    except EngineFailure as failure:
        if "No module named" in str(failure):
            raise ModelError("--check needs ONNX Runtime: pip install onnxruntime") from failure
        raise ModelError(f"--check: ONNX Runtime cannot run the result: {failure}") from failure
