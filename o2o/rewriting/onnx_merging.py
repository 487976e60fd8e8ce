"""Functions of merged ONNX models, and what selects a graph (`o2o.formats.onnx_branches`)."""

from __future__ import annotations

import onnx_ir as ir

from o2o.formats.onnx_writer import selector_of
from o2o.model import Model


def add_functions(result: Model, model: Model) -> None:
    """Add the functions of a model to those of another. One of the same name and another body is renamed.

    Args:
        result: Gets the functions.
        model: The model, whose nodes may be renamed.
    """
    renamed: dict[ir.OperatorIdentifier, ir.OperatorIdentifier] = {}
    taken = {*result.functions, *model.functions}
    for key, function in model.functions.items():
        other = result.functions.get(key)
        if other is None or _same(function, other):
            continue
        domain, name, overload = key
        count = 1
        while (domain, f"{name}_{count}", overload) in taken:
            count += 1
        renamed[key] = domain, f"{name}_{count}", overload
        taken.add(renamed[key])
    for graph in model.all_graphs():
        for node in graph:
            if (new := renamed.get(node.op_identifier())) is not None:
                node.op_type = new[1]
    for key, function in model.functions.items():
        if key in renamed:
            function.name = renamed[key][1]
        result.functions.setdefault(renamed.get(key, key), function)


def _same(function: ir.Function, other: ir.Function) -> bool:
    one, two = (
        ir.serde.serialize_function(each).SerializeToString(deterministic=True) for each in (function, other)
    )
    return one == two


def selection(model: Model) -> str:
    """Describe what selects the graph that runs, in words.

    Args:
        model: An ONNX model of several graphs.

    Returns:
        One line.

    Raises:
        ModelError: The graphs cannot be in one file.
    """
    selector = selector_of(model)
    labels = [model.label(graph) for graph in model.graphs]
    if selector.is_flag:
        return f"the input {selector.input} selects {labels[selector.order[0]]} if it is true"
    if selector.input is not None:
        numbers = ", ".join(f"{number} {label}" for number, label in enumerate(labels))
        return f"the input {selector.input} selects the signature: {numbers}"
    axes = " and of ".join(f"axis {axis} of {name}" for name, axis in selector.axes)
    sizes = ", ".join(
        f"{' and '.join('other' if size is None else str(size) for size in row)} {label}"
        for row, label in zip(selector.sizes, labels, strict=True)
    )
    return f"the size of {axes} selects the signature: {sizes}"
