"""A model on LiteRT, which runs in a process of its own."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.check.engine_process import ENGINE, EngineFailure
from o2o.check.runner import Results, signatures_io
from o2o.errors import ModelError
from o2o.formats.dialects import convert
from o2o.formats.litert_ops import is_registered, minimum_version
from o2o.formats.tensor_order import tensor_order
from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import CUSTOM_DOMAIN, Model, Signature

Result = TypeVar("Result")

BATCH = 64
"""Tensors that are fetched at a time."""


class LiteRtRunner:
    """A model on LiteRT: see `Runner`.

    Circle's own operators are lowered. A model without them runs as it is: nothing is rewritten.
    """

    engine = "LiteRT"
    refusal = ""
    delegates = True
    delegate_failure = ""
    """Why the model ran without delegates, although they were allowed."""

    def __init__(self, model: Model, label: str, lower: bool = False) -> None:
        """Write a model to a file that LiteRT reads.

        Args:
            model: A model without external weights. It becomes the runner's own.
            label: Its name in messages.
            lower: Lower Circle's own operators, by the code of lower.litert.py.

        Raises:
            ModelError: LiteRT cannot load it.
        """
        self.label = label
        self._folder = tempfile.TemporaryDirectory()  # models may be larger than memory
        self.model = model
        self.io = signatures_io(self.model)
        self.rounds_activations = any(
            multiplies_quantized(node) for graph in self.model.graphs for node in graph
        )
        self._updated: dict[str, dict[str, str]] = {name: {} for name in self.io}
        if lower:
            self._lower()
        else:
            self._check_operators()
            convert(self.model, "tflite")
        for graph in self.model.graphs:
            for value in tensor_order(graph):
                value.meta.pop("name", None)  # unique names in the file too: tensors are read by name
        formats.save(self.model, self._file("runnable"))
        self._allocate = not any(t.dynamic for io in self.io.values() for t in io.inputs.values())
        self._keys: dict[tuple[bool, bool], tuple[int, int]] = {}  # (process, key)
        self._finalizer = weakref.finalize(self, _release, self._keys)
        self._try(lambda: self._key())

    def without_delegates(self) -> LiteRtRunner:
        """Return the same model on LiteRT's own kernels: no delegate takes a composite as a whole.

        Returns:
            A runner that shares the file.
        """
        other = copy.copy(self)
        other.delegates = False
        return other

    def _file(self, name: str) -> str:
        return os.path.join(self._folder.name, name)

    def _check_operators(self) -> None:
        """Give operators the versions that LiteRT registers; they compute the same. Refuse unknown ones.

        Kernels do not refuse all blocks of weights that they misread.
        """
        from o2o.lower.litert.block_weights import has_other_blocks

        for graph in self.model.graphs:
            for node in graph:
                if node.domain == CUSTOM_DOMAIN:
                    continue
                if has_other_blocks(node):
                    where = self.model.locate(graph, node)
                    raise self._error(f"it has no kernel for the blocks of weights of {where}")
                if not is_registered(node.op_type):
                    raise self._error(f"it has no operator {self.model.locate(graph, node)}")
                node.version = max(node.version or 1, minimum_version(node))

    def _lower(self) -> None:
        """Lower the model. An output for each updated cache is added; outputs keep their order."""
        from o2o.lower.litert import lower_to_litert

        caches = {s.name: {n: s.inputs[n] for n in self.io[s.name].updated} for s in self.model.signatures}
        lower_to_litert(self.model)
        for signature in self.model.signatures:
            for name, cache in caches[signature.name].items():
                self._updated[signature.name][name] = _output_of(signature, cache)

    def _key(self, keep_tensors: bool = False) -> int:
        """The model's number in the engine's process, which may have been started anew."""
        how = self.delegates and not keep_tensors, keep_tensors
        starts, key = self._keys.get(how, (-1, -1))
        if starts != ENGINE.starts or not ENGINE.alive:
            key = ENGINE.new_key()
            self._request("load_litert", key, self._file("runnable"), *how, self._allocate)
            self._keys[how] = ENGINE.starts, key
        return key

    def _try(self, attempt: Callable[[], Result]) -> Result:
        """Make an attempt, and a second one without delegates, which fail on some models that are valid."""
        try:
            return attempt()
        except ModelError as error:
            if not self.delegates:
                raise
            self.delegates = False
            try:
                result = attempt()
            except ModelError:
                self.delegates = True
                raise
            self.delegate_failure = str(error).rpartition("of the result: ")[2]
            return result

    def _request(self, *request: Any, name: str | None = None) -> Any:
        try:
            return ENGINE.request(*request)
        except EngineFailure as failure:
            raise self._error(str(failure), name) from failure

    def _error(self, reason: str, name: str | None = None) -> ModelError:
        what = self.label if name is None else f"{name} of {self.label}"
        return ModelError(f"--check: LiteRT cannot run {what}: {reason}")

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> Results:
        """See `Runner`."""
        outputs = self._try(lambda: self._request("run_litert", self._key(), name, dict(feeds), name=name))
        updated = {cache: outputs[output] for cache, output in self._updated[name].items()}
        return Results({key: outputs[key] for key in self.io[name].outputs}, updated)

    def every_tensor(
        self, name: str, feeds: Mapping[str, np.ndarray], wanted: Collection[str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """See `Runner`."""
        key = self._key(keep_tensors=True)
        self._request("run_litert", key, name, dict(feeds), name=name)
        signature = next(s for s in self.model.signatures if s.name == name)
        index = self.model.graphs.index(signature.graph)
        values = [value for node in signature.graph for value in node.outputs if value.dtype is not None]
        names = [v.name for v in values if v.name and (wanted is None or v.name in wanted)]
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            numbers = self._request("tensors", key, index, batch, name=name)
            yield from ((tensor, numbers[tensor]) for tensor in batch if tensor in numbers)


def _release(keys: Mapping[tuple[bool, bool], tuple[int, int]]) -> None:
    for starts, key in keys.values():
        if ENGINE.alive and starts == ENGINE.starts:
            with contextlib.suppress(EngineFailure):
                ENGINE.request("release", key)


def _output_of(signature: Signature, cache: ir.Value) -> str:
    """The output of a lowered signature that is the updated `cache`."""
    for name, value in signature.outputs.items():
        node = value.producer()
        if node is not None and node.op_type == "DYNAMIC_UPDATE_SLICE" and node.inputs[0] is cache:
            return name
    raise ModelError(f"--check: {signature.name} does not return the updated cache {cache.name}")


def multiplies_quantized(node: ir.Node) -> bool:
    """Whether `node` multiplies activations with quantized weights.

    Args:
        node: Any node.

    Returns:
        True if kernels may round the activations.
    """
    return node.op_type in ("FULLY_CONNECTED", "ATTENTION", "CONV_2D", "BATCH_MATMUL") and any(
        value is not None and is_constant(value) and is_quantized(value) for value in node.inputs
    )
