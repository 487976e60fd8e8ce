"""ONNX to the vocabulary of Circle: one graph of ONNX operators becomes one of builtin operators.

    op        `Operation`: one ONNX node while its rule raises it
    rules     the table: a rule for each ONNX operator, from one module per topic
    graphs    `raise_graph`: a graph and a map of values, strict or lenient
    models    `raise_model`: an ONNX model to a Circle model

A new operator needs one rule in the module of its topic. A rule takes an `Operation`, emits builtin
operators, and returns the results. Shapes follow from the operands of each builtin operator.
"""

from o2o.raising.graphs import Raised, Unsupported, raise_graph
from o2o.raising.models import as_circle, raise_model

__all__ = ["Raised", "Unsupported", "as_circle", "raise_graph", "raise_model"]
