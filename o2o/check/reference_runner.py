"""A model by the operators' meaning in numpy (`o2o.operators.reference`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from o2o.check.litert_runner import LiteRtRunner
from o2o.check.onnx_runner import OnnxRunner
from o2o.check.runner import Results, Runner, signatures_io
from o2o.errors import ModelError
from o2o.formats.tensors import is_constant, is_quantized
from o2o.lower.litert.lowering import is_lowered
from o2o.model import Model
from o2o.operators import reference
from o2o.quantization.compare import dequantized
from o2o.rewriting.outline import decompositions


class ReferenceRunner:
    """A model in numpy: see `Runner`.

    Quantized weights are what they stand for, and activations are not rounded. A model with an operand that
    no kernel takes is lowered and runs on LiteRT.
    """

    def __init__(self, model: Model, label: str) -> None:
        """Take a model.

        Args:
            model: A model without external weights. It becomes the runner's own.
            label: Its name in messages.
        """
        self.label = label
        self.engine = "numpy"
        self.rounds_activations = False
        self.refusal = ""
        self.model = model
        self.io = signatures_io(self.model)
        self._constants: dict[ir.Graph, dict[ir.Value, np.ndarray]] = {}
        self._fallback: LiteRtRunner | None = None

    def _known(
        self, name: str, feeds: Mapping[str, np.ndarray]
    ) -> tuple[ir.Graph, dict[ir.Value, np.ndarray]]:
        signature = next(s for s in self.model.signatures if s.name == name)
        graph = signature.graph
        if graph not in self._constants:
            self._constants[graph] = {
                value: dequantized(value)
                for value in graph.initializers.values()
                if is_constant(value) and is_quantized(value)
            }
        inputs = {value: np.array(feeds[key]) for key, value in signature.inputs.items()}
        return graph, {**self._constants[graph], **inputs}

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> Results:
        """See `Runner`."""
        if self._fallback is None:
            try:
                return self._run(name, feeds)
            except reference.NotEvaluable:
                self._fallback = LiteRtRunner(self.model, self.label, lower=True)
                self.engine, self.rounds_activations = "LiteRT", self._fallback.rounds_activations
        return self._fallback.run(name, feeds)

    def _run(self, name: str, feeds: Mapping[str, np.ndarray]) -> Results:
        graph, known = self._known(name, feeds)
        signature = next(s for s in self.model.signatures if s.name == name)
        outputs = set(signature.outputs.values())
        with np.errstate(all="ignore"):
            computed = {value: x for value, x in reference.run_nodes(graph, known) if value in outputs}
        rest = {value: reference.evaluate(value, known) for value in outputs if value not in computed}
        results = {key: (computed | rest)[value] for key, value in signature.outputs.items()}
        return Results(results, {key: known[signature.inputs[key]] for key in self.io[name].updated})

    def every_tensor(
        self, name: str, feeds: Mapping[str, np.ndarray], wanted: Collection[str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """See `Runner`."""
        if self._fallback is not None:
            yield from self._fallback.every_tensor(name, feeds, wanted)
            return
        graph, known = self._known(name, feeds)
        with np.errstate(all="ignore"):
            for value, numbers in reference.run_nodes(graph, known):
                if value.name and (wanted is None or value.name in wanted):
                    yield value.name, numbers


def runner_of(model: Model, label: str, or_numpy: bool) -> Runner:
    """Choose how a model is run: as it is on LiteRT, or in numpy if it has operators that LiteRT lacks.

    ONNX runs on ONNX Runtime.

    So a lowering is never compared with itself. Only where numpy has no kernel, Circle's operators are
    lowered to run on LiteRT.

    Args:
        model: A model without external weights. It becomes the runner's own.
        label: Its name in messages.
        or_numpy: Run a model that LiteRT refuses in numpy, where that is possible.

    Returns:
        The model, ready to run.

    Raises:
        ModelError: LiteRT cannot load it.
    """
    if model.format == "onnx":
        return OnnxRunner(model, label)
    nodes = [node for graph in model.graphs for node in graph]
    has_kernels = all(map(reference.has_kernel, nodes))
    if any(map(is_lowered, nodes)):
        return ReferenceRunner(model, label) if has_kernels else LiteRtRunner(model, label, lower=True)
    try:
        return LiteRtRunner(model, label)
    except ModelError as error:
        if not (or_numpy and has_kernels):
            raise
        runner = ReferenceRunner(model, label)
        runner.refusal = str(error)
        return runner


def runners_of_result(model: Model, label: str, or_numpy: bool) -> list[Runner]:
    """Choose how a result is run: like `runner_of`, and without delegates too if it has composites.

    Args:
        model: A model without external weights. It becomes the runner's own.
        label: Its name in messages.
        or_numpy: Run a model that LiteRT refuses in numpy.

    Returns:
        One or two runners: a delegate may compute a composite by its name, other kernels by its graph.

    Raises:
        ModelError: LiteRT cannot load it.
    """
    has_composites = bool(decompositions(model))
    runner = runner_of(model, label, or_numpy)
    if has_composites and isinstance(runner, LiteRtRunner):
        return [runner, runner.without_delegates()]
    return [runner]


def alike(runner: Runner, other: Runner) -> Runner:
    """Choose the kernels of a model like those of another one: kernels differ in how they round to int8.

    Args:
        runner: The model.
        other: The model with which it is compared.

    Returns:
        The model on LiteRT's own kernels if the other one is run on them and both round; else `runner`.
    """
    if isinstance(runner, LiteRtRunner) and isinstance(other, LiteRtRunner):
        rounding = runner.rounds_activations and other.rounds_activations
        if rounding and runner.delegates and not other.delegates:
            return runner.without_delegates()
    return runner


def on_own_kernels(runner: Runner) -> Runner:
    """Choose the kernels on which every tensor of a model can be read: those of LiteRT itself.

    Args:
        runner: The model.

    Returns:
        The model without delegates if it runs on LiteRT; else `runner`.
    """
    return runner.without_delegates() if isinstance(runner, LiteRtRunner) else runner
