"""The inputs and outputs of a growing decoder: their roles, and the sizes that symbolic dimensions have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.cli.text import listed
from o2o.contract import Role, Slot
from o2o.errors import ModelError, UsageError
from o2o.model import dims_of
from o2o.rewriting.fix_dimensions import UNKNOWN

SMALLEST_PAST = 4
"""Positions that a capacity has beyond the tokens of a run: three lengths of the past are compared."""
POSITIONS = ("position", "last_position", "length")
"""Kinds of inputs that follow from the position of the first token."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a static decoder.

    Attributes:
        tokens: T, the number of tokens of a run.
        capacity: S, the rows of a cache.
    """

    tokens: int
    capacity: int


def fixed_input(value: ir.Value, role: Role | None, sizes: Sizes) -> np.ndarray | None:
    """Return what an input of an exporter always is for a static decoder.

    Args:
        value: An input that holds no tokens, positions, masks or caches.
        role: Its role.
        sizes: The sizes of the decoder.

    Returns:
        Its numbers; None for an input whose numbers differ from run to run.
    """
    numbers = {"use_cache": 1, "num_logits": sizes.tokens}
    if role is None or role.kind not in numbers or value.dtype is None:
        return None
    return np.full([1] * len(dims_of(value) or ()), numbers[role.kind], value.dtype.numpy())


def is_first_position(value: ir.Value) -> bool:
    """Return whether a position is that of the first token, for any number of tokens.

    Args:
        value: An input with the role of a position.

    Returns:
        True for the shapes [1] and [].
    """
    return dims_of(value) in ((), (1,))


class Interface:
    """The roles of the inputs and outputs of a graph.

    Attributes:
        roles: The role of each input and output that has one.
        outputs: The output that returns each cache.
    """

    def __init__(self, graph: ir.Graph, names: Mapping[str, Role]) -> None:
        """Take the roles.

        Args:
            graph: The graph of a decoder.
            names: The roles of inputs and outputs, by name.

        Raises:
            ModelError: There is no cache, or the layout of one is not known.
        """
        self.graph = graph
        values = [*graph.inputs, *graph.outputs]
        self.roles = {value: names[value.name or ""] for value in values if value.name in names}
        self.outputs: dict[Slot, ir.Value] = {
            role.slot: value for value, role in self.roles.items() if role.is_rows and value.is_graph_output()
        }
        if not self.caches:
            inputs = listed([value.name or "" for value in graph.inputs])
            raise ModelError(f"no input is a KV cache that grows; inputs: {inputs}")
        for value, role in self.caches.items():
            if all(isinstance(dim, int) for dim in (dims_of(value) or ())[1:]):
                raise ModelError(
                    f"the cache {value.name} {list(dims_of(value) or ())} does not grow: leave "
                    "--cache-length out, and give the dimensions that are left their numbers"
                )
            if role.layout is None:
                raise ModelError(
                    f"the layout of the cache {value.name} is not clear: sign.contract.py sets it"
                )

    @property
    def caches(self) -> dict[ir.Value, Role]:
        """The caches among the inputs."""
        return {v: role for v, role in self.roles.items() if role.is_cache and v.is_graph_input()}

    def inputs(self, kind: str) -> list[ir.Value]:
        """Return the inputs of one kind.

        Args:
            kind: A kind of role.

        Returns:
            The inputs, in order.
        """
        return [v for v in self.graph.inputs if v in self.roles and self.roles[v].kind == kind]

    def token_axis(self, cache: ir.Value) -> int:
        """Return the axis of tokens.

        Args:
            cache: A cache.

        Returns:
            The number of the axis.
        """
        return (self.roles[cache].layout or "").index("T")

    def replace_output(self, old: ir.Value, new: ir.Value) -> None:
        """Give an output that replaces another its role.

        Args:
            old: The output that was there.
            new: The output that takes its place.
        """
        if (role := self.roles.pop(old, None)) is not None:
            self.roles[new] = role
            self.outputs = {slot: new if v is old else v for slot, v in self.outputs.items()}

    def positions(self, past: int, sizes: Sizes) -> dict[str, np.ndarray]:
        """Compute the inputs that follow from the position of the first token.

        Args:
            past: That position.
            sizes: The sizes of the decoder.

        Returns:
            Their numbers by name.
        """
        arrays = {}
        for value in (value for kind in POSITIONS for value in self.inputs(kind)):
            rank, kind = len(dims_of(value) or ()), self.roles[value].kind
            first = {"position": past, "last_position": past + sizes.tokens - 1}.get(
                kind, past + sizes.tokens
            )
            count = sizes.tokens if kind == "position" and not is_first_position(value) else 1
            shape = [1] * (rank - 1) + [count] if rank else []
            assert value.dtype is not None
            arrays[value.name or ""] = (
                np.arange(first, first + count).reshape(shape).astype(value.dtype.numpy())
            )
        return arrays

    def dimensions(self, sizes: Sizes) -> Callable[[int], dict[str, int]]:
        """Choose a size for each symbolic dimension of the inputs and outputs.

        Args:
            sizes: The sizes of the static decoder. There is one sequence.

        Returns:
            A function that takes the length P of the past, and returns the sizes by name.

        Raises:
            ModelError: Tokens or positions have axes of another meaning, or one name has two meanings.
            UsageError: The graph is made for another number of tokens.
        """
        dimensions = _Dimensions()
        for value, role in self.caches.items():
            dimensions.fix(value, (role.layout or "").index("B"), 1)
            dimensions.grow(value, self.token_axis(value), 0)
            if (output := self.outputs.get(role.slot)) is not None:
                dimensions.fix(output, (role.layout or "").index("B"), 1)
                dimensions.grow(output, self.token_axis(value), sizes.tokens)
        positions = [value for value in self.inputs("position") if not is_first_position(value)]
        for value in (*self.inputs("tokens"), *positions):
            rank = len(dims_of(value) or ())
            if rank not in (1, 2):
                raise ModelError(f"{value.name} has {rank} axes: only [B,T] and [T] have a static form")
            dimensions.fix(value, rank - 1, sizes.tokens)
            if rank == 2:
                dimensions.fix(value, 0, 1)
        for value in self.inputs("mask"):
            rank = len(dims_of(value) or ())
            dimensions.grow(value, rank - 1, sizes.tokens)
            dimensions.fix(value, 0, 1)
            if rank == 4:
                dimensions.fix(value, 1, 1)
                dimensions.fix(value, 2, sizes.tokens)
        for value in self.graph.outputs:
            if value in self.roles and self.roles[value].kind == "logits":
                dimensions.fix(value, 0, 1)
                if len(dims_of(value) or ()) == 3:
                    dimensions.fix(value, 1, sizes.tokens)
        return dimensions.sizes()


class _Dimensions:
    """The symbolic dimensions of a graph by name: numbers, and numbers that are added to P."""

    def __init__(self) -> None:
        self.fixed: dict[str, int] = {}
        self.growing: dict[str, int] = {}

    def fix(self, value: ir.Value, axis: int, size: int) -> None:
        """Give an axis a size."""
        dim = self._name(value, axis)
        if isinstance(dim, str):
            self.fixed.setdefault(dim, size)
        elif value.is_graph_input() and dim != size:
            raise UsageError(f"axis {axis} of {value.name} is {dim}, not {size}: give --tokens {dim}")

    def grow(self, value: ir.Value, axis: int, more: int) -> None:
        """Give an axis the size P + more."""
        dim = self._name(value, axis)
        if isinstance(dim, str):
            self.growing.setdefault(dim, more)
        elif value.is_graph_input():
            raise ModelError(f"axis {axis} of {value.name} is {dim}: it does not grow")

    def _name(self, value: ir.Value, axis: int) -> int | str:
        """A dimension, which gets a name if it has none."""
        dims = list(dims_of(value) or ())
        if not axis < len(dims):
            return "?"
        if dims[axis] == UNKNOWN:
            dims[axis] = f"{value.name} axis {axis}"
            value.shape = ir.Shape(dims)
        return dims[axis]

    def sizes(self) -> Callable[[int], dict[str, int]]:
        """The sizes as a function of P."""
        if both := sorted(set(self.fixed) & set(self.growing)):
            raise ModelError(f"the dimension {both[0]} is a length of caches, and another size as well")
        fixed, growing = self.fixed, self.growing
        return lambda past: fixed | {name: past + more for name, more in growing.items()}
