"""Small activations in models of tokens: embedding tables are scaled down, in both models alike.

Inputs of such a model are integers. So a wrong epsilon would not be seen where embeddings are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from o2o.contract import role_of
from o2o.formats.tensors import constant_array, is_constant
from o2o.model import Model
from o2o.operators.traits import lookup_operands, passes_through, traits_of

FACTOR = np.float32(1e-3)


def token_tables(graph: ir.Graph) -> dict[str, np.ndarray] | None:
    """Find the tables of floats that the token ids index.

    Args:
        graph: A graph.

    Returns:
        Their numbers by name; None without any, or if one is not of plain floats.
    """
    tables = {}
    for value in graph.inputs:
        role = role_of(value)
        if role is None or role.kind != "tokens":
            continue
        for table in _indexed(value):
            numbers = constant_array(table)
            if numbers is None or numbers.dtype != np.float32:
                return None
            tables[table.name or ""] = numbers
    return tables or None


def _indexed(value: ir.Value) -> Iterator[ir.Value]:
    for node, operand in value.uses():
        lookup = lookup_operands(node)
        if lookup is not None and operand == traits_of(node).index:
            yield lookup[0]
        elif operand == 0 and passes_through(node):
            yield from _indexed(node.outputs[0])


def tables_of(model: Model) -> dict[str, dict[str, np.ndarray]]:
    """Find the tables of all signatures.

    Args:
        model: A model.

    Returns:
        For each signature with tables that can be scaled, their numbers by name.
    """
    by_name = ((s.name, token_tables(s.graph)) for s in model.signatures)
    return {name: tables for name, tables in by_name if tables is not None}


def scale_constants(constants: Mapping[str, ir.Value], tables: Mapping[str, np.ndarray]) -> None:
    """Scale tables, and all constants of the same numbers or their transpose: a head may share them.

    Args:
        constants: The initializers of a graph, changed in place.
        tables: The numbers to scale.
    """
    for value in constants.values():
        if value.dtype != ir.DataType.FLOAT or value.const_value is None or value.is_graph_input():
            continue
        size = value.const_value.nbytes
        if any(size == t.nbytes for t in tables.values()) and is_constant(value):
            numbers = value.const_value.numpy()
            orders = (numbers.reshape(-1), numbers.T.reshape(-1))
            if any(np.array_equal(order, t.reshape(-1)) for order in orders for t in tables.values()):
                value.const_value = ir.Tensor(numbers * FACTOR, name=value.name)
