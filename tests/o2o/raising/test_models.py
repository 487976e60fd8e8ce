"""A whole model: signatures, functions, messages."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from o2o.errors import ModelError
from o2o.formats.tensors import storage_key
from tests.o2o.onnx_graphs import branches
from tests.o2o.raising.evaluation import assert_same, operators, parsed, raised


def test_functions_are_inlined() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[4] x) => (float[4] z) { y = local.twice <k = 3.0> (x) z = local.twice <k = 2.0> (y) }
    <domain: "local", opset_import: ["" : 21]>
    twice <k> (p) => (q) { c = Constant <value_float: float = @k> () q = Mul (p, c) }
    """
    assert operators(assert_same(onnx.parser.parse_model(text))) == ["MUL", "MUL"]


def test_each_operator_without_a_counterpart_is_named_once() -> None:
    nodes = "a = Det (x) b = Det (x) i = NonZero (x) y = Add (a, b)"
    with pytest.raises(ModelError) as error:
        raised(parsed("float[2,2] x", "float y, int64[2,N] i", nodes))
    assert str(error.value) == (
        "no counterpart in Circle: "
        "Det a (x float32 [2, 2], opset 21): Circle has no such operator and 1 more; "
        "NonZero i (x float32 [2, 2], opset 21): Circle has no such operator"
    )


def test_symbolic_dimensions_are_named() -> None:
    with pytest.raises(ModelError, match=r"the shape \[N,4\]: fix.shape.py"):
        raised(branches())


def test_inputs_with_defaults_are_constants() -> None:
    """Files of IR version 3 list their weights among the inputs."""
    proto = parsed("float[2] x, float[2] w", "float[2] y", "y = Add (x, w)", 8, "float[2] w = {1, 2}")
    proto.ir_version = 3
    model = assert_same(proto, {"x": np.ones(2, np.float32)})
    assert list(model.signatures[0].inputs) == ["x"]


def test_types_that_are_no_tensors_are_named() -> None:
    nodes = "s = SequenceConstruct (x, x) o = OptionalHasElement (s) y = ConcatFromSequence <axis = 0> (s)"
    with pytest.raises(ModelError, match=r"SequenceConstruct s \(x float32 \[2\], "):
        raised(parsed("float[2] x", "float[4] y, bool o", nodes))


def test_constants_share_their_data() -> None:
    """No weight is read or copied."""
    from o2o.formats.onnx_reader import decode
    from o2o.raising import raise_model

    numbers = ", ".join(["1"] * 2000)
    proto = parsed(
        "float[2000] x", "float[2000] y", "y = Add (x, w)", constants=f"float[2000] w = {{{numbers}}}"
    )
    model = decode(proto, [], None)
    result = raise_model(model)
    before = model.graphs[0].initializers["w"].const_value
    after = result.graphs[0].initializers["w"].const_value
    assert before is not None
    assert after is not None
    assert storage_key(before) == storage_key(after)
