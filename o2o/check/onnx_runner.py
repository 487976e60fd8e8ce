"""An ONNX model on ONNX Runtime, which runs in a process of its own, or on ONNX's reference evaluator."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from o2o import formats
from o2o.check.engine_process import ENGINE, EngineFailure
from o2o.check.runner import Arrays, Results, signatures_io
from o2o.errors import ModelError
from o2o.formats.onnx_writer import selector_of
from o2o.model import Model, dims_of


class OnnxRunner:
    """A model on ONNX Runtime: see `Runner`.

    A model that ONNX Runtime does not take runs on ONNX's reference evaluator, which is slow.
    """

    rounds_activations = False

    def __init__(self, model: Model, label: str) -> None:
        """Write a model to a file and load it.

        Args:
            model: A model. It becomes the runner's own.
            label: Its name in messages.

        Raises:
            ModelError: Neither engine loads it.
        """
        self.label, self.model = label, model
        self.engine, self.refusal = "ONNX Runtime", ""
        self.io = signatures_io(model)
        _compute_in_float32(model)
        self._folder = tempfile.TemporaryDirectory()  # models may be larger than memory
        formats.save(model, self._path)
        self._key = ENGINE.new_key()
        self._finalizer = weakref.finalize(self, _release, self._key)
        try:
            ENGINE.request("load_onnx", self._key, str(self._path))
        except EngineFailure as failure:
            self._take_reference(failure)

    @property
    def _path(self) -> Path:
        return Path(self._folder.name, "runnable.onnx")

    def _take_reference(self, failure: EngineFailure) -> None:
        """Run on the reference evaluator from now on. Raises ModelError if that fails too."""
        self.engine, self.refusal = "ONNX's reference evaluator", str(failure)
        try:
            self._evaluator(self._path)
        except Exception as error:  # it raises anything
            raise self._error(error) from error

    def _evaluator(self, path: Path) -> onnx.reference.ReferenceEvaluator:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(str(path))

    def _error(self, error: Exception) -> ModelError:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return ModelError(
            f"--check: ONNX Runtime cannot run {self.label}: {self.refusal}; nor can ONNX's reference "
            f"evaluator: {reason}"
        )

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> Results:
        """See `Runner`."""
        results = self._run(self._path, self._key, self._selecting(name, feeds))
        return Results({key: results[key] for key in self.io[name].outputs})

    def _selecting(self, name: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The feeds of the file: those of a signature, and what a file of several graphs takes besides."""
        complete = dict(feeds)
        if len(self.model.graphs) > 1:
            selector = selector_of(self.model)
            signature = next(s for s in self.model.signatures if s.name == name)
            value = selector.value_for(self.model.graphs.index(signature.graph))
            if selector.input is not None and value is not None:
                complete[selector.input] = value
            complete = {**_absent_inputs(self.model), **complete}
        return complete

    def _run(self, path: Path, key: int, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if not self.refusal:
            try:
                results: Arrays = ENGINE.request("run_onnx", key, dict(feeds))
            except EngineFailure as failure:
                self._take_reference(failure)
            else:
                return results
        try:
            evaluator = self._evaluator(path)
            with np.errstate(all="ignore"):
                outputs = evaluator.run(None, dict(feeds))
        except Exception as error:  # it raises anything
            raise self._error(error) from error
        return {n: np.asarray(x) for n, x in zip(evaluator.output_names, outputs, strict=True)}

    def every_tensor(
        self, name: str, feeds: Mapping[str, np.ndarray], wanted: Collection[str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """See `Runner`."""
        graph = next(s.graph for s in self.model.signatures if s.name == name)
        names = [value.name or "" for node in graph for value in node.outputs if _is_tensor(value)]
        names = [tensor for tensor in names if tensor and (wanted is None or tensor in wanted)]
        path = self._path.with_name("tensors.onnx")
        formats.save(
            replace(self.model, graphs=[graph], signatures=list(self.model.signatures_of(graph))), path
        )
        proto = onnx.load(path, load_external_data=False)
        known = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in names if tensor not in known)
        path.write_bytes(proto.SerializeToString())
        key = ENGINE.new_key()
        if not self.refusal:
            try:
                ENGINE.request("load_onnx", key, str(path))
            except EngineFailure as failure:
                self._take_reference(failure)
        results = self._run(path, key, feeds)
        yield from ((tensor, results[tensor]) for tensor in names if isinstance(results[tensor], np.ndarray))


def _absent_inputs(model: Model) -> Arrays:
    """Zeros for each input of a model of several graphs."""
    values = {value.name or "": value for graph in model.graphs for value in graph.inputs}
    return {
        name: np.zeros(
            [dim if isinstance(dim, int) else 0 for dim in dims_of(value) or ()], value.dtype.numpy()
        )
        for name, value in values.items()
        if value.dtype is not None and value.dtype != ir.DataType.STRING
    }


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _compute_in_float32(model: Model) -> None:
    """Let products with weights of a few bits not round their other operand, which no other runner does."""
    for graph in model.all_graphs():
        for node in graph:
            if node.op_type == "MatMulNBits" and "accuracy_level" in node.attributes:
                node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def _release(key: int) -> None:
    if ENGINE.alive:
        with contextlib.suppress(EngineFailure):
            ENGINE.request("release", key)
