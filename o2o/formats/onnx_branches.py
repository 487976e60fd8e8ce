"""Several graphs in one ONNX file: the branches of an If, which ONNX Runtime and other runtimes take.

    prefill: tokens [1,32] -> logits        file: tokens [1,tokens_1] -- If (size of tokens = 1)
    decode:  tokens [1,1]  -> logits   =>           then: decode
                                                    else: prefill, or an If for further graphs

A model in memory has a graph for each signature, as in Circle. `onnx_composition` makes one graph of their
messages. `onnx_splitting` undoes it, by the metadata entry `o2o.signatures`:

    {"version": 1,
     "selected_by": {"input": "tokens", "sizes": [32, 1], "axis": 1},
     "order": [1, 0],
     "signatures": [{"names": ["prefill"], "inputs": ["tokens", ...], "outputs": ["logits", ...]}, ...]}

- The file has the inputs and outputs of all graphs, each name once.
- Dimensions that differ become symbolic.
- Large constants are in the outer graph, equal ones once, and branches refer to them. Only the operands of
  DequantizeLinear are in the branches. As external data they are stored once.
- The size of an input selects the branch, where sizes differ. Else an input does. It is `use_cache_branch`
  (bool [1], as in Optimum's files) if one of two graphs takes more inputs, or `signature_index` (int64 [1]).
- An input that the selected branch lacks is not read: an empty tensor will do.
- An output that the selected branch lacks is empty.
- A branch declares the inputs of its graph, with their static shapes, among its value infos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """What selects the branch.

    Attributes:
        input: The name of an input.
        axis: The axis whose size decides; None if the number in the input does.
        sizes: The size, or the number in the input, that selects each graph; None for any other one.
        order: The graphs in the order in which they are tried. The last one is not tested.
        is_flag: Whether the input is a bool, which is true for the first graph of `order`.
    """

    input: str
    axis: int | None
    sizes: list[int | None]
    order: list[int]
    is_flag: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the entry `selected_by` of the metadata.

        Returns:
            An object for JSON.
        """
        entry: dict[str, Any] = {"input": self.input, "sizes": self.sizes}
        if self.axis is not None:
            entry["axis"] = self.axis
        return entry | ({"flag": True} if self.is_flag else {})

    def value_for(self, index: int) -> np.ndarray | None:
        """Return what to feed to select a graph.

        Args:
            index: The number of the graph.

        Returns:
            The value of `input`: bool [1] or int64 [1]. None if the size of an input selects it.
        """
        if self.axis is not None:
            return None
        return np.array([index == self.order[0]]) if self.is_flag else np.array([self.sizes[index]], np.int64)


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
    """Choose what selects the branch: the size of an input if it differs, else an input of its own.

    Args:
        parts: The graphs.
        taken: Names of inputs and outputs.

    Returns:
        The selector.
    """
    for is_open in (False, True):
        for name, owners in united(parts, "input").items():
            each = [dims_in(part.inputs[name]) for part in owners]
            known = [dims for dims in each if dims is not None]
            if len(known) < len(parts) or len({len(dims) for dims in known}) > 1:
                continue
            for axis, dims in enumerate(zip(*known, strict=True)):
                sizes = [dim if isinstance(dim, int) else None for dim in dims]
                if len(set(sizes)) == len(sizes) and (None in sizes) == is_open:
                    order = sorted(range(len(sizes)), key=lambda index: (sizes[index] is None, -index))
                    return Selector(name, axis, sizes, order)
    if len(parts) == 2:
        one, other = (part.inputs.keys() for part in parts)
        if one < other or other < one:
            order = [1, 0] if one < other else [0, 1]
            return Selector(unique_name(CACHE_BRANCH, set(taken)), None, [], order, True)
    order = list(range(len(parts)))
    return Selector(unique_name(INDEX, set(taken)), None, [*order], order)


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
        sizes = [None if size is None else int(size) for size in by["sizes"]]
        axis = by.get("axis")
        return Selector(
            str(by["input"]), None if axis is None else int(axis), sizes, order, bool(by.get("flag"))
        )
