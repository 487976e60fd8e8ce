"""Parameters of an exported graph become constants: weights in the file, or references to the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from export.options import WeightsForm, WeightsType
from export.resources import format_bytes
from o2o.cli.text import counted, listed
from o2o.formats.tensors import LARGE
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import shape_of
from o2o.rewriting.builder import Builder
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.weight_source import WeightSource


def bind_parameters(
    graph: ir.Graph,
    matched: Mapping[str, WeightSource],
    form: WeightsForm = "embed",
    dtype: WeightsType = "float32",
) -> None:
    """Replace the graph inputs that are parameters by constants. Weights are read when the file is written.

    Args:
        graph: An exported graph; changed in place.
        matched: {input name: stored tensor}.
        form: `embed` puts weights into the file. `external` refers to the checkpoint, except for constants
            below `o2o.formats.tensors.LARGE` bytes.
        dtype: The dtype of large matrices. A DEQUANTIZE follows each float16 matrix; LiteRT runs it once.

    Raises:
        ModelError: A tensor is not stored as a float.
    """
    for value in [value for value in graph.inputs if value.name in matched]:
        assert value.name is not None
        assert value.dtype is not None
        stored = matched[value.name]
        small = CheckpointTensor(value.name, stored, value.dtype).nbytes < LARGE
        graph.inputs.remove(value)
        if dtype == "float16" and len(stored.shape) > 1 and not small:
            value = _insert_float16(graph, value)
        assert value.dtype is not None
        weight = CheckpointTensor(value.name or "", stored, value.dtype)
        if form == "embed" or weight.nbytes < LARGE:  # a large float32 matrix may be small in float16
            value.const_value = weight
        else:
            name = value.name or ""
            value.const_value = UnboundTensor(name, stored.path, stored.name, value.dtype, stored.shape)
        graph.register_initializer(value)


def drop_unread(graph: ir.Graph, matched: Mapping[str, WeightSource]) -> dict[str, WeightSource]:
    """Remove the graph inputs of parameters that no operator reads, such as the pooler of BigBird.

    Args:
        graph: An exported graph; changed in place.
        matched: {input name: stored tensor}.

    Returns:
        The entries of `matched` that remain.
    """
    unread = [value for value in graph.inputs if value.name in matched and not value.uses()]
    for value in unread:
        graph.inputs.remove(value)
    names = {value.name for value in unread}
    return {name: stored for name, stored in matched.items() if name not in names}


def _insert_float16(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Put a DEQUANTIZE before the readers of `value`; return its float16 input."""
    half = ir.Value(name=f"{value.name}_float16", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16))
    full = Builder(graph, before=graph[0]).node("DEQUANTIZE", [half], shape_of(value), value.dtype)
    value.replace_all_uses_with(full)
    full.name = value.name
    return half


def unused_tensors(
    checkpoint: Checkpoint, graph: ir.Graph, matched: Mapping[str, WeightSource]
) -> dict[str, dict[str, str]]:
    """List the tensors of `checkpoint` that no constant of `graph` refers to.

    Args:
        checkpoint: The model's weights.
        graph: The exported graph after `bind_parameters`.
        matched: The stored tensor of each parameter.

    Returns:
        {file: {tensor name: digest}}. A small tensor, which the graph contains, has a digest. The digest
        is empty for second names of tied tensors and for tensors that the model computes.
    """
    constants = [value.const_value for value in graph.initializers.values()]
    used = {
        (constant.path, constant.tensor_name) for constant in constants if isinstance(constant, UnboundTensor)
    }
    embedded = {(stored.path, stored.name) for stored in matched.values()} - used
    unused: dict[str, dict[str, str]] = {}
    for tensor in checkpoint.tensors.values():
        key = tensor.path, tensor.name
        if key not in used:
            digest = tensor.digest() if key in embedded else ""
            unused.setdefault(str(tensor.path), {})[tensor.name] = digest
    return unused


def describe_skipped(names: Collection[str], tensors: Mapping[str, WeightSource]) -> str:
    """Describe stored tensors that the model does not use.

    Args:
        names: Their names.
        tensors: The tensors of the checkpoint.

    Returns:
        One line.
    """
    size = format_bytes(sum(tensors[name].length for name in names))
    return (
        f"skipped {counted(len(names), 'tensor')} that the model does not use, {size}: {listed(names, 4)} "
        "(--strict refuses them)"
    )
