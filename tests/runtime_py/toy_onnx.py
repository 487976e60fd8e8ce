"""The toy of `tests.runtime_py.toy` as an ONNX model: one graph for any number of tokens, caches in place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.runtime_py.toy import HEAD, HEADS, WIDTH, Toy

OPSET = 24
_TYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}

_GRAPH = """
    key_rows = Gather <axis = 0> (keys, tokens)
    length_1 = Shape <start = 1> (tokens)
    length = Squeeze (length_1)
    start = Squeeze (position)
    begin = Cast <to = 7> (start)
    end = Add (begin, length)
    positions = Range (begin, end, one)
    weights_of = Gather <axis = 0> (weights, positions)
    keys_turned = Mul (key_rows, weights_of)
    value_rows = Gather <axis = 0> (values, tokens)
    key_split = Reshape (keys_turned, split)
    key_new = Transpose <perm = [0, 2, 1, 3]> (key_split)
    value_split = Reshape (value_rows, split)
    value_new = Transpose <perm = [0, 2, 1, 3]> (value_split)
    begin_1 = Cast <to = 7> (position)
    present_key_0 = TensorScatter <axis = 2> (past_key_0, key_new, begin_1)
    present_value_0 = TensorScatter <axis = 2> (past_value_0, value_new, begin_1)
    both = Mul (present_key_0, present_value_0)
    both_turned = Transpose <perm = [0, 2, 1, 3]> (both)
    both_flat = Reshape (both_turned, flat)
    column = Unsqueeze (positions, minus_one)
    seen = LessOrEqual (slots, column)
    mask = Cast <to = 1> (seen)
    summed = MatMul (mask, both_flat)
    every = MatMul (summed, head)
"""
_LAST = "    logits = Gather <axis = 1> (every, last)\n"
_EVERY = "    logits = Identity (every)\n"


def toy_onnx(
    toy: Toy, *, ids_dtype: str = "int64", every_logit: bool = False, with_contract: bool = True
) -> onnx.ModelProto:
    """A model that says what `toy` says. every_logit: logits [1, T, V], not those of the last token alone."""
    parsed = onnx.parser.parse_graph(
        f"g (int64[1] x) => (int64[1] logits) {{{_GRAPH}{_EVERY if every_logit else _LAST}}}"
    )
    constants = {
        "keys": toy.keys,
        "values": toy.values,
        "weights": toy.weights[:, None],
        "head": toy.lm_head.T.copy(),
        "one": np.array(1),
        "last": np.array([-1]),
        "minus_one": np.array([-1]),
        "split": np.array([1, -1, HEADS, HEAD]),
        "flat": np.array([1, -1, WIDTH]),
        "slots": np.arange(toy.capacity),
    }
    cache = [1, HEADS, toy.capacity, HEAD]
    spread = {"layer": 0, "layout": "BNTH"}
    rows = 1 if not every_logit else "T"
    inputs = [
        ("tokens", ids_dtype, [1, "T"], {"role": "tokens"}),
        ("position", ids_dtype, [1], {"role": "position"}),
        *((f"past_{kind}_0", "float32", cache, {"role": f"{kind}_cache", **spread}) for kind in _KINDS),
    ]
    outputs = [
        ("logits", "float32", [1, rows, toy.vocab], {"role": "logits"}),
        *((f"present_{kind}_0", "float32", cache, {"role": kind, **spread}) for kind in _KINDS),
    ]
    graph = helper.make_graph(
        parsed.node,
        "toy",
        *(
            [helper.make_tensor_value_info(name, _TYPES[dtype], shape) for name, dtype, shape, _ in items]
            for items in (inputs, outputs)
        ),
        initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    if with_contract:
        decode = {
            end: [
                {"name": name, "dtype": dtype, "shape": shape, **role} for name, dtype, shape, role in items
            ]
            for end, items in (("inputs", inputs), ("outputs", outputs))
        }
        contract = {"version": 1, "signatures": {"decode": decode}}
        helper.set_model_props(model, {"o2o.contract": json.dumps(contract)})
    onnx.checker.check_model(model)
    return model


_KINDS = ("key", "value")


def write_onnx(toy: Toy, path: Path, external: bool = False, **options: object) -> Path:
    """Write the model to a file; external: with its weights in a second file in the same folder."""
    model = toy_onnx(toy, **options)  # type: ignore[arg-type]
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=200)
    return path
