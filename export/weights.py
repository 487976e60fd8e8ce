"""Parameters become constants that refer to the checkpoint's bytes: read when written, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import onnx_ir as ir

from export.model import LanguageModel
from o2o.errors import ModelError
from o2o.weights.checkpoint import Checkpoint
from o2o.weights.stored import FLOATS, StoredTensor

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
    complaints = [f"lacks {_some(missing)}"] if missing else []
    complaints += [f"holds {_some(left)}, which the model has no place for"] if left else []
    complaints += [
        f"has {name} as {list(found[name].shape)}, not {list(shape)}"
        for name, shape in model.parameters.items()
        if name in found and found[name].shape != shape
    ][:3]
    if complaints:
        raise ModelError(f"{checkpoint.directory} does not fit its config.json: {'; '.join(complaints)}")
    return found


class Converted(ir.LazyTensor):
    """The float32 numbers of a tensor that is stored as another float, converted piece by piece."""

    def __init__(self, name: str, stored: StoredTensor) -> None:
        super().__init__(self._read, ir.DataType.FLOAT, ir.Shape(stored.shape), name=name)
        self.stored = stored

    def _read(self) -> ir.TensorProtocol:
        return ir.Tensor(self.stored.read_float32(), name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        for piece in self.stored.pieces():
            file.write(piece.data)


def constant(name: str, stored: StoredTensor) -> ir.TensorProtocol:
    """A float32 constant called `name` over the bytes of `stored`, which are read when it is written.

    Raises ModelError for a dtype that is no float.
    """
    if stored.dtype not in FLOATS:
        raise ModelError(f"{stored.path}: {stored.name} is stored as {stored.dtype}, not as a float")
    if stored.dtype != "F32":
        return Converted(name, stored)
    shape = ir.Shape(stored.shape)
    return ir.ExternalTensor(
        stored.path, stored.offset, stored.length, ir.DataType.FLOAT, shape=shape, name=name
    )


def bind(graph: ir.Graph, found: Mapping[str, StoredTensor]) -> None:
    """Turn the inputs of `graph` that are named in `found` into constants."""
    for value in [value for value in graph.inputs if value.name in found]:
        assert value.name is not None
        graph.inputs.remove(value)
        value.const_value = constant(value.name, found[value.name])
        graph.register_initializer(value)


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


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
