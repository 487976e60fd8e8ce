"""A model on an engine: its inputs and outputs, and how to run it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from o2o.check.symbolic_sizes import EXAMPLE, sizes_of
from o2o.contract import Role, role_of
from o2o.formats.tensors import is_quantized
from o2o.model import Model, Signature, attribute, dims_of, shape_of
from o2o.operators.attention import Attention, takes_as_cache
from o2o.operators.traits import lookup_operands, passes_through, traits_of

Arrays = dict[str, np.ndarray]
Slot = tuple[str, int]
UNKNOWN_LIMIT = 2
"""The limit of integers that index no table: they may be conditions, axes or shapes."""
UNNAMED = "unnamed"
"""The meta entry of a graph: (signature, name) of inputs and outputs that the signature lacks in the file."""


@dataclass(frozen=True)
class IoTensor:
    """An input or output of a signature.

    Attributes:
        tensor: The name of its tensor in the graph.
        shape: Its dimensions; examples for the axes in `dynamic`.
        dtype: The dtype of its elements; None for one that numpy lacks.
        role: From the contract, if there is one.
        limit: Exclusive upper bound of valid integers, such as the number of rows of a table.
        dynamic: The axes whose size the caller chooses.
        default: The numbers of an input that ONNX gives a default; they are fed.
        dims: Its dimensions with the names of symbolic ones.
        quantized: Whether its integers stand for other numbers.
        capacity: The number of positions that a cache serves; None for other tensors, and for a cache of
            unknown layout.
        rows_written: How many of them ATTENTION writes; 1 without ATTENTION.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    role: Role | None = None
    limit: int = UNKNOWN_LIMIT
    dynamic: tuple[int, ...] = ()
    dims: tuple[int | str, ...] = ()
    default: ir.TensorProtocol | None = None
    quantized: bool = False
    capacity: int | None = None
    rows_written: int = 1

    @classmethod
    def of(cls, value: ir.Value, sizes: Mapping[str, int] | None = None) -> IoTensor:
        """Describe an input or output.

        Args:
            value: The input or output in the graph.
            sizes: Examples of symbolic dimensions, by name; None for a static shape.

        Returns:
            What a check needs to know about it.
        """
        signature = value.meta.get("fields", {}).get("shapeSignature")
        dims = dims_of(value) or ()
        shape = tuple(dim if isinstance(dim, int) else (sizes or {})[dim] for dim in dims)
        dynamic: Iterable[bool] = (isinstance(dim, str) for dim in dims)
        if signature is not None:
            dynamic = (dim < 0 for dim in signature)
        has_numbers = value.dtype is not None and isinstance(value.type, ir.TensorType)
        return cls(
            value.name or "",
            shape,
            value.dtype.numpy() if value.dtype is not None and has_numbers else None,
            role_of(value),
            min(_table_rows(value), default=UNKNOWN_LIMIT),
            tuple(axis for axis, varies in enumerate(dynamic) if varies),
            dims,
            value.const_value if value.is_graph_input() and value.is_initializer() else None,
            is_quantized(value),
            _capacity(value, shape),
            max((attention.T for attention in _writers(value)), default=1),
        )

    @property
    def token_axis(self) -> int | None:
        """The token axis of a key, value or cache whose layout is known."""
        if self.role is None or self.role.layout is None:
            return None
        return self.role.layout.index("T")

    @property
    def kind(self) -> str | None:
        """The kind of the role."""
        return self.role.kind if self.role is not None else None

    @property
    def is_window_cache(self) -> bool:
        """Whether this is a window cache, or its rows (`o2o.contract`)."""
        return self.role is not None and self.role.capacity is not None

    @property
    def slot(self) -> Slot | None:
        """The slot of a key, value or cache."""
        if self.role is None or not (self.role.is_cache or self.role.is_rows):
            return None
        return self.role.slot


def _capacity(value: ir.Value, shape: Sequence[int]) -> int | None:
    role = role_of(value)
    if role is None or not role.is_cache or role.layout is None:
        return None
    return role.capacity or shape[role.layout.index("T")]


def _writers(value: ir.Value) -> list[Attention]:
    """The ATTENTIONs that update a cache in place."""
    return [Attention.of(node) for node, operand in value.uses() if takes_as_cache(node, operand)]


def _table_rows(value: ir.Value) -> Iterator[int]:
    """The number of rows of each table that `value` indexes."""
    for node, operand in value.uses():
        if operand == traits_of(node).index and (lookup := lookup_operands(node)) is not None:
            table, _ = lookup
            rows = (dims_of(table) or (0,))[attribute(node, "axis", 0)]
            if isinstance(rows, int) and rows:
                yield rows
        elif operand == 0 and passes_through(node):
            yield from _table_rows(node.outputs[0])


@dataclass(frozen=True)
class Io:
    """The inputs and outputs of a signature, by their names in it.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        updated: Names of the inputs that a run updates in place: caches of ATTENTION.
        appended: By input: the tensor with the new rows that a CONCATENATION appends to the cache.
        in_order: Whether inputs and outputs are in the order of the graph.
        unnamed: Names of inputs and outputs of the graph that the signature lacks in the file.
        leaves_rows_undefined: Whether rows of returned caches behind the last token are of no meaning.
    """

    inputs: Mapping[str, IoTensor]
    outputs: Mapping[str, IoTensor]
    updated: tuple[str, ...] = ()
    appended: Mapping[str, str] = field(default_factory=dict)
    in_order: bool = True
    unnamed: frozenset[str] = frozenset()
    leaves_rows_undefined: bool = False


_UNDEFINED_ROWS = ("GroupQueryAttention",)
"""Operators that copy only the rows in front of the position from a cache to the one that they return."""


def signatures_io(model: Model) -> dict[str, Io]:
    """Describe the signatures of a model.

    Args:
        model: The model. A main graph without a signature gets one called `main`.

    Returns:
        Inputs and outputs by signature.
    """
    model.add_default_signature("main")
    return {signature.name: _io(signature) for signature in model.signatures}


def _io(signature: Signature) -> Io:
    values = [*signature.inputs.values(), *signature.outputs.values()]
    sizes = sizes_of([(_kind(value), dims_of(value) or ()) for value in values], EXAMPLE)
    return Io(
        {name: IoTensor.of(value, sizes) for name, value in signature.inputs.items()},
        {name: IoTensor.of(value, sizes) for name, value in signature.outputs.items()},
        tuple(name for name, value in signature.inputs.items() if _is_updated(value)),
        {
            name: rows
            for name, value in signature.inputs.items()
            if (rows := _appended(value, role_of(value))) is not None
        },
        list(signature.inputs.values()) == list(signature.graph.inputs)
        and list(signature.outputs.values()) == list(signature.graph.outputs),
        frozenset(name for owner, name in signature.graph.meta.get(UNNAMED, ()) if owner == signature.name),
        any(node.op_type in _UNDEFINED_ROWS for node in signature.graph),
    )


def _kind(value: ir.Value) -> str | None:
    role = role_of(value)
    return role.kind if role is not None else None


def _is_updated(value: ir.Value) -> bool:
    return any(takes_as_cache(use.node, use.idx) for use in value.uses())


def _appended(value: ir.Value, role: Role | None) -> str | None:
    """The tensor of new rows that is concatenated to a cache."""
    if role is None or not role.is_cache or role.layout is None:
        return None
    for node, _ in value.uses():
        axis = attribute(node, "axis", 0)
        if node.op_type == "CONCATENATION" and axis % len(shape_of(value)) == role.layout.index("T"):
            others = [other for other in node.inputs if other is not None and other is not value]
            if len(others) == 1 and others[0].producer() is not None:
                return others[0].name
    return None


@dataclass(frozen=True)
class Results:
    """What a run returns.

    Attributes:
        outputs: Outputs by their names in the signature.
        updated: The inputs that the run updates in place, as they are afterwards, by name.
    """

    outputs: Arrays
    updated: Arrays = field(default_factory=dict)


class Runner(Protocol):
    """A model on an engine.

    Attributes:
        label: Its name in messages.
        engine: The engine's name.
        io: Inputs and outputs by signature, as they are in the file.
        rounds_activations: Whether the engine quantizes activations before it multiplies quantized weights.
        refusal: Why LiteRT does not run the model, where numpy runs it in its place; else empty.
    """

    label: str
    engine: str
    io: dict[str, Io]
    rounds_activations: bool
    refusal: str

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> Results:
        """Run a signature.

        Args:
            name: The name of the signature.
            feeds: Inputs by their names in the signature. They are not changed.

        Returns:
            Outputs and updated inputs.

        Raises:
            ModelError: The engine fails.
        """
        ...

    def every_tensor(
        self, name: str, feeds: Mapping[str, np.ndarray], wanted: Collection[str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Run a signature and yield every tensor that an operator computes.

        Args:
            name: The name of the signature.
            feeds: Inputs by their names in the signature.
            wanted: The names of the tensors to yield; None for all.

        Yields:
            Name and numbers, in the order of the graph.
        """
        ...
