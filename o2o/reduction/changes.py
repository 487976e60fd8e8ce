"""Ways to make a model smaller. Each changes a model in place; it need not mean the same afterwards."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import Model, dims_of, inner_graphs, quantization_constants, shape_of
from o2o.rewriting.builder import add_constant
from o2o.rewriting.dead_code_elimination import (
    remove_dead_constants,
    remove_dead_functions,
    remove_dead_graphs,
    remove_dead_nodes,
    remove_loose_values,
)
from o2o.rewriting.extraction import extract
from o2o.rewriting.rewire import set_io_values, sync_signatures
from o2o.rewriting.topological_sort import topological_sort

SHAPE_OPERANDS = 16
"""The largest number of elements of an integer constant that may hold dimensions."""


def clean(model: Model) -> None:
    """Remove what is unused, as gc.py does, and unused inputs.

    Args:
        model: Changed in place.
    """
    for graph in model.all_graphs():
        topological_sort(graph)
        remove_dead_nodes(graph)
    remove_loose_values(model)
    remove_dead_graphs(model)
    remove_dead_functions(model)
    run = {id(inner) for graph in model.graphs for node in graph for inner in inner_graphs(node)}
    for graph in model.graphs:
        if id(graph) not in run:
            set_io_values(graph, "input", [v for v in graph.inputs if v.uses() or v.is_graph_output()])
            sync_signatures(model, graph)
        remove_dead_constants(graph)


def keep_signatures(model: Model, names: Collection[str]) -> None:
    """Remove all other signatures, and the graphs that only they have.

    Args:
        model: Changed in place.
        names: The signatures that stay.
    """
    model.signatures = [signature for signature in model.signatures if signature.name in names]
    first = model.signatures[0].graph
    model.graphs = [first, *(graph for graph in model.graphs if graph is not first)]


def keep_outputs(model: Model, graph: ir.Graph, positions: Collection[int]) -> None:
    """Remove all other outputs of a graph.

    Args:
        model: Changed in place.
        graph: Its graph.
        positions: The outputs that stay.
    """
    set_io_values(graph, "output", [v for k, v in enumerate(graph.outputs) if k in positions])
    sync_signatures(model, graph)


def keep_operators(model: Model, graph: ir.Graph, positions: Collection[int]) -> None:
    """Remove all other operators of a graph. Tensors where that cuts it become inputs and outputs.

    Args:
        model: Changed in place.
        graph: Its graph.
        positions: The operators that stay.
    """
    extract(model, graph, {node for k, node in enumerate(graph) if k in positions})


def bypass(graph: ir.Graph, position: int) -> bool:
    """Replace the result of an operator by an operand of the same dtype and shape.

    Args:
        graph: Changed in place.
        position: The number of the operator.

    Returns:
        Whether it has such an operand.
    """
    node = list(graph)[position]
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    result = node.outputs[0]
    for value in node.inputs:
        if value is not None and value.dtype == result.dtype and dims_of(value) == dims_of(result):
            result.replace_all_uses_with(value)
            graph.remove(node, safe=True)
            return True
    return False


def input_to_constant(model: Model, graph: ir.Graph, position: int, seed: int) -> bool:
    """Replace an input by a constant: zeros, or random numbers for floats.

    Args:
        model: Changed in place.
        graph: Its graph.
        position: The number of the input.
        seed: Of the random numbers.

    Returns:
        Whether this is possible: not for text, nor for an input that is an output too.
    """
    value = graph.inputs[position]
    if value.dtype in (None, ir.DataType.STRING) or value.is_graph_output() or is_quantized(value):
        return False
    numbers = _random(value, seed, 1.0)
    if numbers is None:
        return False
    graph.inputs.remove(value)
    sync_signatures(model, graph)
    graph.meta.pop("names", None)
    value.replace_all_uses_with(add_constant(graph, numbers, value.name or "constant"))
    return True


def replaceable_weights(graph: ir.Graph) -> list[str]:
    """List the constants that `seeded_weights` can replace: floats, and quantized weights.

    Args:
        graph: A graph.

    Returns:
        Their names. Other integers may be shapes, axes or indices.
    """
    parameters = {id(v) for x in graph.initializers.values() for v in quantization_constants(x).values()}
    return [
        name
        for name, value in graph.initializers.items()
        if is_constant(value)
        and id(value) not in parameters
        and value.dtype is not None
        and value.const_value is not None
        and value.const_value.dtype == value.dtype
        and value.dtype.bitwidth >= 8
        and (value.dtype.is_floating_point() or is_quantized(value))
    ]


def seeded_weights(graph: ir.Graph, names: Collection[str], seed: int) -> None:
    """Replace the numbers of constants by random ones of the same root mean square.

    Args:
        graph: Changed in place.
        names: The constants.
        seed: Of the random numbers; each constant has its own by its name.
    """
    for name in names:
        value = graph.initializers[name]
        assert value.const_value is not None
        stored = value.const_value.numpy()
        size = 1.0
        if stored.dtype.kind == "f" and stored.size:
            size = float(np.sqrt(np.square(stored.astype(np.float64)).mean()))
        numbers = _random(value, seed, size if math.isfinite(size) and size else 1.0)
        if numbers is not None:
            value.const_value = ir.Tensor(numbers, value.dtype, name=name)


def _random(value: ir.Value, seed: int, size: float) -> np.ndarray | None:
    """Numbers for a value: normally distributed floats, quantized integers, zeros for other types."""
    assert value.dtype is not None
    if value.dtype.bitwidth < 8:
        return None
    dtype, shape = value.dtype.numpy(), shape_of(value)
    generator = np.random.default_rng([seed, zlib.crc32((value.name or "").encode())])
    if value.dtype.is_floating_point():
        return (generator.standard_normal(shape) * size).astype(dtype)
    if is_quantized(value):
        low, high = (0, 256) if dtype == np.uint8 else (-127, 128)
        return generator.integers(low, high, shape).astype(dtype)
    return np.zeros(shape, dtype)


def dimensions(graph: ir.Graph) -> list[int]:
    """List the sizes of dimensions in a graph.

    Args:
        graph: A graph.

    Returns:
        Sizes above 1; those of the most elements first.
    """
    counts: Counter[int] = Counter()
    for value in _values(graph):
        shape = [dim for dim in dims_of(value) or () if isinstance(dim, int)]
        for size in shape:
            counts[size] += math.prod(shape)
    return [size for size, _ in counts.most_common() if size > 1]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def shrink_dimension(graph: ir.Graph, old: int, new: int) -> None:
    """Replace all dimensions of one size by a smaller one: of tensors, and in constants of shapes.

    Args:
        graph: Changed in place.
        old: The size.
        new: The smaller size.
    """
    for value in _values(graph):
        shape, constant = dims_of(value) or (), value.const_value
        if constant is not None and constant.dtype == value.dtype and old in shape:
            cut = tuple(slice(new) if dim == old else slice(None) for dim in shape)
            numbers = np.ascontiguousarray(constant.numpy()[cut])
            value.const_value = ir.Tensor(numbers, value.dtype, name=value.name)
        if value.shape is not None:
            value.shape = ir.Shape([new if dim == old else dim for dim in value.shape])
        _shrink_scales(value, shape, old, new)
        _shrink_numbers(value, old, new)
    for node in graph:
        if (option := node.attributes.get("newShape")) is not None:
            sizes = [new if size == old else size for size in option.as_ints()]
            node.attributes["newShape"] = ir.AttrInt64s("newShape", sizes)


def _shrink_scales(value: ir.Value, shape: tuple[int | str, ...], old: int, new: int) -> None:
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    if scale is None or len(scale) != old or shape[quantization.quantizedDimension] != old:
        return
    quantization.scale = scale[:new]
    zeros = quantization.zeroPoint
    if zeros is not None and len(zeros) == old:
        quantization.zeroPoint = zeros[:new]


def _shrink_numbers(value: ir.Value, old: int, new: int) -> None:
    """Replace the size in a constant that may be a shape, or the sizes or bounds of a slice."""
    constant = value.const_value
    integers = (ir.DataType.INT32, ir.DataType.INT64)
    if constant is None or value.dtype not in integers or constant.dtype != value.dtype:
        return
    if constant.size <= SHAPE_OPERANDS:
        numbers = constant.numpy().copy()
        numbers[numbers == old] = new
        value.const_value = ir.Tensor(numbers, value.dtype, name=value.name)


def drop_metadata(model: Model) -> None:
    """Remove metadata and associated files. The history stays: it records the model's origin.

    Args:
        model: Changed in place.
    """
    model.metadata.clear()
    model.associated_files.clear()


def drop_roles(model: Model) -> None:
    """Remove the roles of all inputs and outputs, and so the contract.

    Args:
        model: Changed in place.
    """
    for signature in model.signatures:
        for value in (*signature.inputs.values(), *signature.outputs.values()):
            value.meta.pop("role", None)
