"""Runner of a model on LiteRT, with shape, dtype and role of each input and output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o import formats
from o2o.cli.silence_stderr import silenced_stderr
from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.model import Model, attribute, shape_of
from o2o.operators.traits import PASS_THROUGH_OPS, lookup_operands, traits_of
from o2o.weights.binding import bind


@dataclass(frozen=True)
class IoTensor:
    """An input or output before lowering.

    Attributes:
        shape: Its dimensions.
        dtype: The dtype of its elements.
        role: From the contract, if there is one.
        limit: Exclusive upper bound of valid integers, such as the number of rows of a table.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    role: Role | None
    limit: int

    @classmethod
    def of(cls, value: ir.Value) -> IoTensor:
        """Describe an input or output.

        Args:
            value: The input or output in the graph.

        Returns:
            Its shape, dtype, role and limit.

        Raises:
            ModelError: Its dtype cannot be fed or compared.
        """
        if value.dtype is None:
            raise ModelError(f"--check: {value.name} has a dtype that cannot be fed or compared")
        return cls(shape_of(value), value.dtype.numpy(), role_of(value), min(_table_rows(value), default=2))

    @property
    def token_axis(self) -> int | None:
        """The token axis of a key, value or cache whose layout is known."""
        if self.role is None or self.role.layout is None:
            return None
        return self.role.layout.index("T")


def _table_rows(value: ir.Value) -> Iterator[int]:
    """The number of rows of each table that `value` indexes."""
    for node, operand in value.uses():
        if operand == traits_of(node).index and (lookup := lookup_operands(node)) is not None:
            table, _ = lookup
            yield shape_of(table)[attribute(node, "axis", 0)]
        elif operand == 0 and node.op_type in PASS_THROUGH_OPS:
            yield from _table_rows(node.outputs[0])


class LiteRtRunner:
    """A model on LiteRT: a copy, which is lowered if it is Circle.

    Attributes:
        io: Inputs and outputs by signature name, as they were before lowering.
    """

    def __init__(self, model: Model, label: str) -> None:
        """Copy, lower and load a model.

        Args:
            model: It is not changed.
            label: Its name in error messages.

        Raises:
            ModelError: LiteRT cannot load it.
        """
        from o2o.lower.litert import lower_to_litert

        self.label = label
        self._folder = tempfile.TemporaryDirectory()  # models may be larger than memory
        formats.save(model, self._file("model"))
        copy = formats.load(self._file("model"))
        bind(copy, partial=True)
        copy.add_default_signature("main")
        inputs = {s.name: {n: IoTensor.of(v) for n, v in s.inputs.items()} for s in copy.signatures}
        self.lowered = lower_to_litert(copy)  # adds an output for each cache that ATTENTION writes
        self.io = {
            s.name: (inputs[s.name], {n: IoTensor.of(v) for n, v in s.outputs.items()})
            for s in copy.signatures
        }
        formats.save(self.lowered, self._file("lowered"))
        self._interpreter = self._load()

    def _file(self, name: str) -> str:
        return os.path.join(self._folder.name, name)

    def _load(self, **options: object) -> object:
        try:
            with silenced_stderr():  # LiteRT logs its delegates
                from ai_edge_litert.interpreter import Interpreter

                interpreter = Interpreter(model_path=self._file("lowered"), **options)
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"--check: LiteRT cannot run {self.label}: {reason}") from error
        return interpreter

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            name: The name of the signature.
            feeds: Inputs by their names in the signature.

        Returns:
            Outputs by their names in the signature.

        Raises:
            ModelError: LiteRT fails.
        """
        runner = self._interpreter.get_signature_runner(name)  # type: ignore[attr-defined]
        try:
            return {key: np.array(value) for key, value in runner(**feeds).items()}
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"--check: LiteRT cannot run {name} of {self.label}: {reason}") from error

    def every_tensor(self, name: str, feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Run a signature and yield every tensor that an operator computes.

        Args:
            name: The name of the signature.
            feeds: Inputs by their names in the signature.

        Yields:
            Name and numbers, in the order of the graph.
        """
        from ai_edge_litert.interpreter import OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # delegates keep no tensors
        interpreter = self._load(experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)
        interpreter.get_signature_runner(name)(**feeds)  # type: ignore[attr-defined]
        signature = next(s for s in self.lowered.signatures if s.name == name)
        index = self.lowered.graphs.index(signature.graph)
        details = interpreter.get_tensor_details(index)  # type: ignore[attr-defined]
        indices = {detail["name"]: detail["index"] for detail in details}
        for node in signature.graph:
            for value in node.outputs:
                if value.name is not None and value.name in indices:
                    numbers = interpreter.get_tensor(indices[value.name], index)  # type: ignore[attr-defined]
                    yield value.name, numbers
