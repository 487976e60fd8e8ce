"""Several graphs in one ONNX file: the branches of an If, which ONNX Runtime and other runtimes take.

    prefill: tokens [1,32] -> logits        file: tokens [1,tokens_1] -- If (size of tokens = 1)
    decode:  tokens [1,1]  -> logits   =>           then: decode
                                                    else: prefill, or an If for further graphs

A model in memory has a graph for each signature, as in Circle. `onnx_composition` makes one graph of their
messages. `onnx_splitting` undoes it, by the metadata entry `o2o.signatures`:

    {"version": 1,
     "selected_by": {"axes": [["tokens", 1]], "sizes": [[32], [1]]},
     "order": [1, 0],
     "signatures": [{"names": ["prefill"], "inputs": ["tokens", ...], "outputs": ["logits", ...]}, ...]}

- The file has the inputs and outputs of all graphs, each name once.
- Dimensions that differ become symbolic.
- Large constants are in the outer graph, equal ones once, and branches refer to them. Only the operands of
  DequantizeLinear are in the branches. As external data they are stored once.
- The size of an input selects the branch, or two sizes, where they differ.
- Else an input does: `use_cache_branch` (bool [1], as in Optimum's files) if one of two graphs takes more
  inputs, `signature_index` (int64 [1]) otherwise.
- An input that the selected branch lacks is not read: an empty tensor will do.
- An output that the selected branch lacks is empty.
- Functions in place of branches would be inlined: ONNX Runtime loads and runs both alike. It packs weights of
  the outer graph once.
- A branch declares the inputs of its graph, with their static shapes, among its value infos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import onnx

from o2o import metadata
from o2o.model import unique_name

METADATA_NAME = "o2o.signatures"
VERSION = 1
CACHE_BRANCH, INDEX = "use_cache_branch", "signature_index"
"""Inputs that select a branch."""
Dims = list[int | str | None]


@dataclass
class Part:
    """A graph of a model, and its entry in the metadata.

    Attributes:
        names: The names of its signatures.
        graph: Its message.
        defaults: Inputs with a default of their own.
        constants: Outputs that are constants. An If cannot return outer values, so a node copies them.
    """

    names: list[str]
    graph: onnx.GraphProto
    defaults: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        return {value.name: value for value in self.graph.input}

    @property
    def outputs(self) -> dict[str, onnx.ValueInfoProto]:
        return {value.name: value for value in self.graph.output}

    @property
    def label(self) -> str:
        return self.names[0] if self.names else self.graph.name

    def as_json(self) -> dict[str, Any]:
        """Return the entry of the metadata.

        Returns:
            An object for JSON.
        """
        entry: dict[str, Any] = {
            "names": self.names,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }
        if self.defaults:
            entry["defaults"] = self.defaults
        return entry | ({"constants": self.constants} if self.constants else {})


@dataclass(frozen=True)
class Selector:
    """What selects the branch: sizes of inputs, or an input.

    Attributes:
        axes: Input and axis of each size that is compared; none if an input selects.
        sizes: For each graph, the sizes that select it; None for any other one.
        order: The graphs in the order in which they are tried. The last one is not tested.
        input: The input that selects: a bool [1], which is true for the first graph of `order`, or the number
            of the graph, int64 [1]. None if sizes select.
        is_flag: Whether the input is a bool.
    """

    axes: list[tuple[str, int]]
    sizes: list[list[int | None]]
    order: list[int]
    input: str | None = None
    is_flag: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the entry `selected_by` of the metadata.

        Returns:
            An object for JSON.
        """
        if self.input is not None:
            return {"input": self.input, "is_flag": self.is_flag}
        return {"axes": [list(axis) for axis in self.axes], "sizes": self.sizes}

    def value_for(self, index: int) -> np.ndarray | None:
        """Return what to feed to select a graph.

        Args:
            index: The number of the graph.

        Returns:
            The value of `input`: bool [1] or int64 [1]. None if sizes select.
        """
        if self.input is None:
            return None
        return np.array([index == self.order[0]]) if self.is_flag else np.array([index], np.int64)


def united(parts: Sequence[Part], side: str) -> dict[str, list[Part]]:
    """Return the parts that have each input, or output.

    Args:
        parts: The graphs.
        side: `input` or `output`.

    Returns:
        The parts by name, in the order in which names first occur.
    """
    owners: dict[str, list[Part]] = {}
    for part in parts:
        for name in getattr(part, f"{side}s"):
            owners.setdefault(name, []).append(part)
    return owners


def dims_in(info: onnx.ValueInfoProto) -> Dims | None:
    """Return the dimensions of a tensor.

    Args:
        info: An input or output.

    Returns:
        Numbers, names, and None for an unknown dimension; None for an unknown rank.
    """
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        return None
    dims: Dims = []
    for dim in info.type.tensor_type.shape.dim:
        dims.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None)
    return dims


def choose_selector(parts: Sequence[Part], taken: set[str]) -> Selector:
    """Choose what selects the branch: one or two sizes of inputs if these differ, else an input of its own.

    Args:
        parts: The graphs.
        taken: Names of inputs and outputs.

    Returns:
        The selector.
    """
    columns = _sizes_by_axis(parts)
    fixed = {axis: sizes for axis, sizes in columns.items() if None not in sizes}
    single = [(axis,) for axis in fixed]
    for axes in (*single, *combinations(fixed, 2), *((axis,) for axis in columns)):
        rows = [list(row) for row in zip(*(columns[axis] for axis in axes), strict=True)]
        if len({tuple(row) for row in rows}) == len(rows):
            order = sorted(range(len(rows)), key=lambda index: (None in rows[index], -index))
            return Selector(list(axes), rows, order)
    if len(parts) == 2:
        one, other = (part.inputs.keys() for part in parts)
        if one < other or other < one:
            order = [1, 0] if one < other else [0, 1]
            return Selector([], [], order, unique_name(CACHE_BRANCH, set(taken)), True)
    return Selector([], [], list(range(len(parts))), unique_name(INDEX, set(taken)))


def _sizes_by_axis(parts: Sequence[Part]) -> dict[tuple[str, int], tuple[int | None, ...]]:
    """The sizes of each axis of inputs that all graphs have, where they differ; None for a symbolic one."""
    columns: dict[tuple[str, int], tuple[int | None, ...]] = {}
    for name, owners in united(parts, "input").items():
        each = [dims_in(part.inputs[name]) for part in owners]
        known = [dims for dims in each if dims is not None]
        if len(known) < len(parts) or len({len(dims) for dims in known}) > 1:
            continue
        for axis, dims in enumerate(zip(*known, strict=True)):
            sizes = tuple(dim if isinstance(dim, int) else None for dim in dims)
            if len(set(sizes)) > 1 and sizes not in columns.values():
                columns[name, axis] = sizes
    return columns


def selector_in(record: str) -> Selector:
    """Return what selects the branch of a composed graph.

    Args:
        record: The metadata entry of `onnx_composition.compose`.

    Returns:
        The selector.

    Raises:
        ModelError: The metadata is damaged.
    """
    content = metadata.parse(METADATA_NAME, record, VERSION)
    with metadata.reports_damage(METADATA_NAME):
        by, order = content["selected_by"], [int(index) for index in content["order"]]
        axes = [(str(name), int(axis)) for name, axis in by.get("axes", ())]
        sizes = [[None if size is None else int(size) for size in row] for row in by.get("sizes", ())]
        return Selector(axes, sizes, order, by.get("input"), bool(by.get("is_flag")))
