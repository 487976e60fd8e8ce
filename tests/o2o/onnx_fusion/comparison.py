"""Fusion of a hand-made ONNX model: what the result computes, and its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import parser

from o2o import formats
from o2o.model import Model
from o2o.onnx_fusion.rule import OnnxRule, apply_to_onnx
from o2o.rewriting.rewrite_rule import RuleResult
from o2o.rewriting.topological_sort import topological_sort
from tests.o2o.onnx_graphs import data_of
from tests.tolerances import assert_close

Arrays = Mapping[str, np.ndarray]


def model_of(text: str, opset: int = 17) -> onnx.ModelProto:
    """A model of one graph."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def read(proto: onnx.ModelProto) -> Model:
    return formats.loads(data_of(proto))


def fused(proto: onnx.ModelProto, rule: OnnxRule) -> tuple[onnx.ModelProto, RuleResult]:
    """The model that a rule makes of a model, and its report."""
    model = read(proto)
    result = apply_to_onnx(model, model.graphs[0], rule)
    for graph in model.all_graphs():
        topological_sort(graph)
    return onnx.load_from_string(formats.dumps(model)), result


def outputs(proto: onnx.ModelProto, feeds: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return dict(zip([v.name for v in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Arrays) -> None:
    """Both models compute the same."""
    expected, actual = outputs(before, feeds), outputs(after, feeds)
    assert list(expected) == list(actual)
    for name, numbers in expected.items():
        assert_close(actual[name], numbers)
