"""Weights of a result against the files of a checkpoint, which another reader reads here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F64": "<f8"}


def refuse_wrong_weights(before: Sequence[Model], after: Model, checkpoint: str | None) -> None:
    """Compare the weights that were put into a model with the checkpoint.

    Files of `torch.save` are not compared.

    Args:
        before: The models with references.
        after: The result, with the same graphs.
        checkpoint: The folder that the weights were taken from; None for the files that are referred to.

    Raises:
        ModelError: A constant has other numbers than the checkpoint.
        OSError: A file cannot be read.
    """
    graphs = [graph for model in before for graph in model.graphs]
    for old, new in zip(graphs, after.graphs, strict=True):
        for name, value in old.initializers.items():
            if not isinstance(value.const_value, UnboundTensor):
                continue
            numbers = _read(value.const_value, checkpoint)
            if numbers is not None and not _equal(new.initializers.get(name), numbers):
                raise ModelError(
                    f"--check: constant {name} of {after.label(new)} has other numbers than "
                    f"{value.const_value.tensor_name} of the checkpoint"
                )


def _equal(value: ir.Value | None, numbers: np.ndarray) -> bool:
    if value is None or value.const_value is None:
        return False
    actual = value.const_value.numpy().reshape(-1)
    return bool(np.array_equal(actual, numbers.astype(actual.dtype)))


def _read(tensor: UnboundTensor, checkpoint: str | None) -> np.ndarray | None:
    """The numbers of a tensor [count]; None if no safetensors file has it."""
    paths = [tensor.path] if checkpoint is None else sorted(Path(checkpoint).glob("*.safetensors"))
    for path in paths:
        if path.suffix != ".safetensors":
            continue
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(size)).get(tensor.tensor_name)
        if entry is not None and entry["dtype"] in DTYPES:
            first, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            numbers = np.fromfile(path, dtype, (end - first) // dtype.itemsize, offset=8 + size + first)
            return _computed(tensor, numbers)
    return None


def _computed(tensor: UnboundTensor, numbers: np.ndarray) -> np.ndarray:
    """The numbers that a reference stands for [count], given those of the stored tensor [count]."""
    if tensor.transposed:
        numbers = numbers.reshape(tensor.stored_shape).T.reshape(-1)
    return numbers.astype(np.float32) + np.float32(tensor.added) if tensor.added else numbers
