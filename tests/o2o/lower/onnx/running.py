"""ONNX on ONNX Runtime, as the engine drives it: each cache is one buffer, input and output at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model

FORMS = ("standard", "ort")


class Running:
    def __init__(self, model: ir.Model | bytes | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        source = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else model
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(source, options, providers=providers)
        inputs = self.session.get_inputs()
        self.ids = np.int64 if "int64" in inputs[0].type else np.int32
        self.caches = {
            end.name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(end.shape, np.float32))
            for end in inputs
            if end.name.startswith("past_")
        }

    def step(self, ids: Sequence[int], position: int) -> np.ndarray:
        """The logits [1, .., V] of these tokens, the first of them at `position`."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("tokens", np.array([ids], self.ids))
        binding.bind_cpu_input("position", np.array([position], np.int64))
        binding.bind_output("logits")
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)
        self.session.run_with_iobinding(binding)
        logits: np.ndarray = binding.copy_outputs_to_cpu()[0]
        return logits


def checked(model: Model, form: str, **options: str) -> ir.Model:
    """`model` in ONNX, which the checker and strict shape inference have passed (what is ONNX Runtime's own
    they know nothing of)."""
    lowered = lower_to_onnx(model, form, **options)
    proto = ir.to_proto(lowered)
    onnx.checker.check_model(proto, full_check=form == "standard")
    if form == "standard":
        _check_shapes(proto)
    return lowered


def _check_shapes(proto: onnx.ModelProto) -> None:
    """Dtypes and shapes of all values are those that ONNX infers."""
    declared = {
        value.name: _dtype_and_shape(value) for value in (*proto.graph.value_info, *proto.graph.output)
    }
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dtype, shape = declared[value.name]
        inferred_dtype, inferred_shape = _dtype_and_shape(value)
        assert (dtype, len(shape)) == (inferred_dtype, len(inferred_shape)), value.name
        known = [
            (a, b)
            for a, b in zip(shape, inferred_shape, strict=True)
            if isinstance(a, int) and isinstance(b, int)
        ]
        assert all(a == b for a, b in known), (value.name, shape, inferred_shape)


def _dtype_and_shape(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    return tensor.elem_type, dims


def chunks(length: int, first: Iterable[int]) -> list[tuple[int, int]]:
    """(start, stop) of prefills of these lengths, then of each further token."""
    found = []
    start = 0
    for size in (*first, *[1] * length):
        if start + size <= length:
            found.append((start, start + size))
            start += size
    return found
