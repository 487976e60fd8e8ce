"""Parameters become constants: the checkpoint's numbers, read when they are written, or references."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import onnx_ir as ir

from export.model import LanguageModel
from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.tensors import LARGE
from o2o.model import shape_of
from o2o.rewriting.builder import Builder
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.stored_tensor import StoredTensor
from o2o.weights.weight import Weight

WeightsForm = Literal["embed", "external"]
WeightsType = Literal["float32", "float16"]
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints store it; the model computes it


def match(model: LanguageModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The stored tensor of each parameter of `model`. Of a tied one, any of its names will do.

    Raises ModelError that names what is missing, left over, of another shape, or tied but stored twice with
    different values.
    """
    left = {name: tensor for name, tensor in checkpoint.tensors.items() if not IGNORED.search(name)}
    found: dict[str, StoredTensor] = {}
    for name in model.parameters:
        stored = [left.pop(alias) for alias in (name, *model.aliases.get(name, ())) if alias in left]
        if stored:
            found[name] = stored[0]
        for other in stored[1:]:
            if not _same_bytes(stored[0], other):
                raise ModelError(
                    f"{checkpoint.directory}: config.json ties {name} to {other.name}, but stores them with "
                    "different values: set tie_word_embeddings to false there"
                )
    missing = [name for name in model.parameters if name not in found]
    complaints = [f"lacks {listed(missing, 4)}"] if missing else []
    complaints += [f"holds {listed(left, 4)}, which the model has no place for"] if left else []
    complaints += [
        f"has {name} as {list(found[name].shape)}, not {list(shape)}"
        for name, shape in model.parameters.items()
        if name in found and found[name].shape != shape
    ][:3]
    if complaints:
        raise ModelError(f"{checkpoint.directory} does not fit its config.json: {'; '.join(complaints)}")
    return found


def bind(
    graph: ir.Graph,
    found: Mapping[str, StoredTensor],
    form: WeightsForm = "embed",
    dtype: WeightsType = "float32",
) -> None:
    """Turn the inputs of `graph` that are named in `found` into constants: numbers (`embed`) or references
    to the checkpoint (`external`), which small ones never are. Nothing is read until it is written.

    dtype: of matrices that are not small; float16 ones are followed by a DEQUANTIZE, which LiteRT does once.
    Raises ModelError for a tensor that is not stored as a float.
    """
    for value in [value for value in graph.inputs if value.name in found]:
        assert value.name is not None
        assert value.dtype is not None
        stored = found[value.name]
        small = Weight(value.name, stored, value.dtype).nbytes < LARGE
        graph.inputs.remove(value)
        if dtype == "float16" and len(stored.shape) > 1 and not small:
            value = _halved(graph, value)
        assert value.dtype is not None
        weight = Weight(value.name or "", stored, value.dtype)
        if form == "embed" or weight.nbytes < LARGE:  # which a half of a large one may be
            value.const_value = weight
        else:
            name = value.name or ""
            value.const_value = ExternalTensor(name, stored.path, stored.name, value.dtype, stored.shape)
        graph.register_initializer(value)


def _halved(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A float16 value of which `value` is made."""
    half = ir.Value(name=f"{value.name}_float16", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16))
    full = Builder(graph, before=graph[0]).node("DEQUANTIZE", [half], shape_of(value), value.dtype)
    value.replace_all_uses_with(full)
    full.name = value.name
    return half


def unused(
    checkpoint: Checkpoint, graph: ir.Graph, found: Mapping[str, StoredTensor]
) -> dict[str, dict[str, str]]:
    """The tensors of `checkpoint` that nothing in `graph` refers to, by file: with a digest the small ones,
    whose numbers are in the graph; with "" second names of tied ones, and what old checkpoints store although
    the model computes it."""
    constants = [value.const_value for value in graph.initializers.values()]
    used = {
        (constant.path, constant.tensor_name)
        for constant in constants
        if isinstance(constant, ExternalTensor)
    }
    embedded = {(stored.path, stored.name) for stored in found.values()} - used
    result: dict[str, dict[str, str]] = {}
    for tensor in checkpoint.tensors.values():
        key = tensor.path, tensor.name
        if key not in used:
            digest = tensor.digest() if key in embedded else ""
            result.setdefault(str(tensor.path), {})[tensor.name] = digest
    return result


def _same_bytes(a: StoredTensor, b: StoredTensor, chunk: int = 16 << 20) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with open(a.path, "rb") as left, open(b.path, "rb") as right:
        left.seek(a.offset)
        right.seek(b.offset)
        for start in range(0, a.length, chunk):
            size = min(chunk, a.length - start)
            if left.read(size) != right.read(size):
                return False
    return True
