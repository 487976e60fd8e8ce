"""Numbers for the symbolic dimensions of an ONNX model, by their names or by the shapes of inputs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from o2o.dimension_expressions import evaluated
from o2o.errors import UsageError
from o2o.model import Model, dims_of

UNKNOWN = "?"


def symbols_of(model: Model) -> dict[str, list[str]]:
    """List the symbolic dimensions of the inputs.

    Args:
        model: An ONNX model.

    Returns:
        The inputs that have each dimension, by its name; `?` for dimensions without a name.
    """
    symbols: dict[str, list[str]] = {}
    for value in (value for graph in model.graphs for value in graph.inputs):
        for dim in dims_of(value) or ():
            if isinstance(dim, str):
                symbols.setdefault(dim, []).append(value.name or "")
    return symbols


def fix_dimensions(
    model: Model, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Give symbolic dimensions of inputs and outputs numbers, and forget all other symbolic shapes.

    Args:
        model: An ONNX model, changed in place.
        sizes: Numbers by the names of dimensions.
        shapes: Shapes by the names of inputs. They give all dimensions of the same names their numbers.

    Returns:
        The numbers by name, also those that follow from shapes.

    Raises:
        UsageError: A name does not exist, two numbers contradict each other, or a dimension has no number.
    """
    of_graphs = [value for graph in model.graphs for value in graph.inputs]
    known = dict(sizes)
    inputs = {value.name: value for value in of_graphs}
    for name, shape in shapes.items():
        _take_shape(inputs, name, shape, known)
    there = symbols_of(model)
    names = ", ".join(there) or "none"
    for name in sizes:
        if name not in there:
            raise UsageError(f"no input has a dimension {name!r}; symbolic dimensions: {names}")
    for dim, of in there.items():
        if dim != UNKNOWN and _number(dim, known) is None:
            raise UsageError(
                f"the dimension {dim!r} of {of[0]} has no number: give {dim}=N, or the shape of an input; "
                f"symbolic dimensions: {names}"
            )
    for value in of_graphs:
        if (name := value.name or "") in shapes:
            value.shape = ir.Shape(shapes[name])
        elif UNKNOWN in (dims := dims_of(value) or ()):
            raise UsageError(f"a dimension of {value.name} {list(dims)} has no name: give its whole shape")
    fix_values(model, known, keep_others=False)
    return known


def fix_values(model: Model, sizes: Mapping[str, int], keep_others: bool = True) -> None:
    """Give the dimensions of all values their numbers.

    Args:
        model: An ONNX model, changed in place.
        sizes: Numbers by the names of dimensions.
        keep_others: Whether a dimension that has no number keeps its name. If not, it becomes unknown.
    """
    for graph in model.all_graphs():
        for value in _values(graph):
            _fix(value, sizes, keep_others)


def _take_shape(
    inputs: Mapping[str | None, ir.Value], name: str, shape: tuple[int, ...], known: dict[str, int]
) -> None:
    if name not in inputs:
        raise UsageError(f"there is no input {name!r}; there are: {', '.join(map(str, inputs))}")
    dims = dims_of(inputs[name])
    if dims is None:
        return
    if len(dims) != len(shape):
        raise UsageError(
            f"{name} has {len(dims)} dimensions, {list(dims)}, and {list(shape)} has {len(shape)}"
        )
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(dim, int) and dim != size:
            raise UsageError(f"{name} has the shape {list(dims)}: {list(shape)} changes the number {dim}")
        if isinstance(dim, str) and dim != UNKNOWN and known.setdefault(dim, size) != size:
            raise UsageError(f"the dimension {dim!r} would be {known[dim]}, and {size} in {name}")


def _number(dim: str, known: Mapping[str, int]) -> int | None:
    return known[dim] if dim in known else evaluated(dim, known)


def _fix(value: ir.Value, known: Mapping[str, int], keep_others: bool) -> None:
    """Replace names by numbers."""
    if value.shape is None or value.shape.is_static():
        return
    dims: list[int | str | None] = []
    for dim in dims_of(value) or ():
        number = dim if isinstance(dim, int) else _number(dim, known)
        dims.append(dim if number is None and keep_others and dim != UNKNOWN else number)
    value.shape = ir.Shape(dims)


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    return list(dict.fromkeys(values))
