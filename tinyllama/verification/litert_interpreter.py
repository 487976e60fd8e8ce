"""A TFLite file on LiteRT's interpreter, with all intermediate tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.cli.silence_stderr import silenced_stderr
from o2o.cores import cores
from o2o.errors import ModelError
from o2o.formats.tensors import is_constant
from o2o.model import Model
from o2o.rewriting.stacked_weights import Shapes, is_stacked, stacked_part_of
from runtime_py.model.contract import Contract, SignatureSpec, Slot, TensorSpec
from tinyllama.verification.trace import Operator, Trace, heads_as_rows, rows, traced_tensors

LINEAR = ("FULLY_CONNECTED", "BATCH_MATMUL")


class TracingInterpreter:
    """Runs signatures one after the other on the same caches."""

    def __init__(self, file: Path, model: Model, contract: Contract, parameters: Shapes) -> None:
        """Load a file.

        Args:
            file: The TFLite file.
            model: Its graphs.
            contract: Its signatures.
            parameters: The checkpoint's parameters.

        Raises:
            ModelError: LiteRT cannot load it.
        """
        with silenced_stderr():
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

            try:
                self._interpreter: Any = Interpreter(
                    model_path=str(file),
                    num_threads=cores(),
                    experimental_preserve_all_tensors=True,
                    # Delegates, such as XNNPACK, keep no intermediate tensors.
                    experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                )
            except (RuntimeError, ValueError) as error:
                raise ModelError(f"LiteRT's interpreter cannot take {file}: {_reason(error)}") from error
        self._graphs = {signature.name: signature.graph for signature in model.signatures}
        self._indices = {
            signature.name: model.graphs.index(signature.graph) for signature in model.signatures
        }
        self._parameters = parameters
        self._signatures = {one.length: one for one in (*contract.prefills, contract.decode)}
        self._empty = contract.decode.caches
        self._caches: dict[Slot, np.ndarray] = {}

    def start(self) -> None:
        """Empty the caches."""
        self._caches = {slot: np.zeros(cache.shape, cache.dtype) for slot, cache in self._empty.items()}

    def run(self, length: int, tokens: Sequence[int], position: int, watch: bool = False) -> Trace:
        """Run one signature.

        Args:
            length: T of the signature.
            tokens: At most T ids.
            position: The position of the first.
            watch: Return all intermediate tensors, too.

        Returns:
            The logits, if there are any, and the intermediate tensors.

        Raises:
            ModelError: LiteRT cannot run it.
        """
        signature, count = self._signatures[length], len(tokens)
        feeds = {tensor.name: self._feed(tensor, tokens, position) for tensor in signature.inputs}
        try:
            with silenced_stderr():
                outputs = self._interpreter.get_signature_runner(signature.name)(**feeds)
        except RuntimeError as error:
            raise ModelError(f"LiteRT's interpreter cannot run {signature.name}: {_reason(error)}") from error
        trace = self._watched(signature) if watch else {}
        for slot, given in signature.cache_outputs.items():
            cached = self._update_cache(slot, given, np.array(outputs[given.name]), count)
            if watch:
                what, layer = slot
                trace[f"model.layers.{layer}.{what}s"] = cached[position : position + count]
        if (logits := signature.output("logits")) is not None:
            trace["logits"] = rows(np.array(outputs[logits.name]))
        return {name: numbers[:count] for name, numbers in trace.items()}  # without padding

    def _feed(self, tensor: TensorSpec, tokens: Sequence[int], position: int) -> np.ndarray:
        if tensor.layout:
            return self._caches[tensor.slot]
        numbers = np.zeros(tensor.shape, tensor.dtype)
        if tensor.kind == "tokens":
            numbers.flat[: len(tokens)] = tokens
        else:
            numbers.flat[:] = position + np.arange(numbers.size)
        return numbers

    def _update_cache(self, slot: Slot, given: TensorSpec, numbers: np.ndarray, count: int) -> np.ndarray:
        """Store an output: a whole cache, or its first `count` rows. Returns all rows, [S, K * H]."""
        cache = self._empty[slot]
        permuted = numbers.transpose([given.layout.index(axis) for axis in cache.layout])
        if permuted.shape == cache.shape:
            self._caches[slot] = permuted
        else:
            part = tuple(slice(count if axis == "T" else None) for axis in cache.layout)
            self._caches[slot][part] = permuted[part]
        return heads_as_rows(self._caches[slot], cache.layout)

    def _watched(self, signature: SignatureSpec) -> Trace:
        """Inputs and outputs of the modules of the signature that has just run."""
        index = self._indices[signature.name]
        details = self._interpreter.get_tensor_details(index)
        places = {detail["name"]: detail["index"] for detail in details}
        trace: Trace = {}
        for name, value in _traced_tensors(self._graphs[signature.name], self._parameters).items():
            if value.name in places and value.dtype == ir.DataType.FLOAT:
                trace[name] = rows(np.array(self._interpreter.get_tensor(places[value.name], index)))
        return trace


def _traced_tensors(graph: ir.Graph, parameters: Shapes) -> dict[str, Any]:
    """{name in a trace: tensor} of `graph`.

    Constants that derive from a parameter count as that parameter, and so does a part of stacked ones.
    """
    constants = list(graph.initializers.values())
    named: dict[Hashable, str] = {
        value: name for value in constants if (name := _parameter(value.name or "", parameters))
    }
    named |= {name: name for name in parameters}
    operators = [operator for node in graph if (operator := _operator(node, parameters)) is not None]
    return traced_tensors(operators, named, constants)


def _operator(node: ir.Node, parameters: Shapes) -> Operator | None:
    """`node` for a trace; None for a product with a stacked matrix: its SPLIT or slices represent it."""
    if (part := stacked_part_of(node, parameters)) is not None:
        return Operator(node.outputs[0], part, True)
    inputs = tuple(value for value in node.inputs if value is not None)
    if not node.outputs or any(is_constant(value) and is_stacked(value, parameters) for value in inputs):
        return None
    return Operator(node.outputs[0], inputs, node.op_type in LINEAR)


def _parameter(name: str, parameters: Shapes) -> str | None:
    """The parameter that a constant derives from: the longest name that is a prefix of `name`."""
    return max((one for one in parameters if name.startswith(one)), key=len, default=None)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[-1]
