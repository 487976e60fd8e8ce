"""A TFLite file on LiteRT's interpreter, with every tensor on the way to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.model import Model, shape_of
from o2o.quiet import quiet
from runtime_py.package import cores
from tinyllama.verification.ends import Cache, Ends, Slot
from tinyllama.verification.trace import Operator, Trace, heads_as_rows, rows, sites

LINEAR = ("FULLY_CONNECTED", "BATCH_MATMUL")


class Interpreted:
    """Runs signatures one after the other and keeps the caches."""

    def __init__(self, file: Path, model: Model, ends: Sequence[Ends], parameters: Sequence[str]) -> None:
        """model: what is in `file`. parameters: the names of the checkpoint's. Raises ModelError."""
        with quiet():
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

            try:
                self._interpreter: Any = Interpreter(
                    model_path=str(file),
                    num_threads=cores(),
                    experimental_preserve_all_tensors=True,
                    # Delegates, as XNNPACK, keep no tensors.
                    experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                )
            except (RuntimeError, ValueError) as error:
                raise ModelError(f"LiteRT's interpreter cannot take {file}: {_reason(error)}") from error
        self._model = model
        self._parameters = parameters
        self._ends = {one.length: one for one in ends}
        self._caches: dict[Slot, np.ndarray] = {}
        self._layouts: dict[Slot, str] = {}

    def start(self) -> None:
        """Empty the caches."""
        for slot, cache in self._ends[1].caches.items():
            self._caches[slot] = np.zeros(shape_of(cache.value), _dtype(cache.value))
            self._layouts[slot] = cache.layout

    def run(self, length: int, tokens: Sequence[int], position: int, watch: bool = False) -> Trace:
        """Feed `tokens`, at most `length`, to the signature of that length, the first at `position`.

        Gives the logits, if there are any; with `watch` all that is on the way, too. Raises ModelError.
        """
        ends, count = self._ends[length], len(tokens)
        try:
            with quiet():
                outputs = self._interpreter.get_signature_runner(ends.name)(
                    **self._feeds(ends, tokens, position)
                )
        except RuntimeError as error:
            raise ModelError(f"LiteRT's interpreter cannot run {ends.name}: {_reason(error)}") from error
        trace = self._watched(ends) if watch else {}
        for slot, given in ends.rows.items():
            self._keep(slot, given, outputs[given.name], count)
            if watch:
                what, layer = slot
                kept = heads_as_rows(self._caches[slot], self._layouts[slot])
                trace[f"model.layers.{layer}.{what}s"] = kept[position : position + count]
        if ends.logits is not None:
            trace["logits"] = rows(np.array(outputs[ends.logits[0]]))
        return {name: numbers[:count] for name, numbers in trace.items()}  # without padding

    def _feeds(self, ends: Ends, tokens: Sequence[int], position: int) -> dict[str, np.ndarray]:
        name, value = ends.tokens
        padded = np.zeros(ends.length, _dtype(value))
        padded[: len(tokens)] = tokens
        feeds = {name: padded.reshape(shape_of(value))}
        if ends.position is not None:
            name, value = ends.position
            shape = shape_of(value)
            feeds[name] = (position + np.arange(int(np.prod(shape)))).astype(_dtype(value)).reshape(shape)
        return feeds | {cache.name: self._caches[slot] for slot, cache in ends.caches.items()}

    def _keep(self, slot: Slot, given: Cache, numbers: np.ndarray, count: int) -> None:
        """Take what came out of a cache; a prefill from the beginning has `count` rows for it."""
        layout, cache = self._layouts[slot], self._caches[slot]
        turned = np.array(numbers).transpose([given.layout.index(axis) for axis in layout])
        if turned.shape == cache.shape:
            self._caches[slot] = turned
            return
        rows_ = tuple(slice(count) if axis == "T" else slice(None) for axis in layout)
        cache[rows_] = turned[rows_]

    def _watched(self, ends: Ends) -> Trace:
        """What the modules of the signature that has just run were given and gave."""
        index = self._model.graphs.index(ends.graph)
        details = self._interpreter.get_tensor_details(index)
        places = {detail["name"]: detail["index"] for detail in details}
        trace: Trace = {}
        for name, value in _sites(ends.graph, self._parameters).items():
            if isinstance(value, ir.Value) and value.name in places and value.dtype == ir.DataType.FLOAT:
                trace[name] = rows(np.array(self._interpreter.get_tensor(places[value.name], index)))
        return trace


def _sites(graph: ir.Graph, parameters: Sequence[str]) -> dict[str, Any]:
    """{name in a trace: tensor} of `graph`. Constants that were made of a parameter go by its name."""
    constants = list(graph.initializers.values())
    named = {value: name for value in constants if (name := _parameter(value.name or "", parameters))}
    operators = [
        Operator(node.outputs[0], tuple(v for v in node.inputs if v is not None), node.op_type in LINEAR)
        for node in graph
        if node.outputs
    ]
    return sites(operators, named, constants)


def _parameter(name: str, parameters: Sequence[str]) -> str | None:
    """The parameter of which a constant called `name` was made: itself, or what its name begins with."""
    return max((one for one in parameters if name.startswith(one)), key=len, default=None)


def _dtype(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return value.dtype.numpy()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[-1]
