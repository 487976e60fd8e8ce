"""Binding: external tensors of a model become the checkpoint's weights that they refer to."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.weights import derived_checkpoint, pytorch_file, safetensors
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.derived_tensor import DerivedTensor, Shifted, Transposed, expression_of
from o2o.weights.weight_source import WeightSource


def unbound_tensors(model: Model) -> Iterator[tuple[ir.Value, UnboundTensor]]:
    """Find the external tensors of a model.

    Args:
        model: Any model.

    Yields:
        Each value whose constant is an external tensor, and that tensor.
    """
    for graph in model.graphs:
        for value in (*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())):
            if isinstance(value.const_value, UnboundTensor):
                yield value, value.const_value


def weight_of(external: UnboundTensor, stored: WeightSource | None = None) -> CheckpointTensor:
    """Return the constant that an external tensor refers to.

    Args:
        external: The external tensor.
        stored: The tensor to take; None for the one in the file that `external` names.

    Returns:
        A constant of the same name, dtype and shape, over the checkpoint's bytes.

    Raises:
        ModelError: The file or its tensor is missing, or the tensor has another shape or is not floating
            point.
        OSError: The file cannot be read.
    """
    if stored is None:
        tensors = tensors_in(external.path, external.name or external.tensor_name)
        if external.tensor_name not in tensors:
            raise ModelError(f"{external.path} lacks {external.tensor_name}, which the model refers to")
        stored = tensors[external.tensor_name]
    if stored.shape != external.stored_shape:
        shapes = f"with shape {list(stored.shape)}, the model expects {list(external.stored_shape)}"
        raise ModelError(f"{stored.path} has {stored.name} {shapes}")
    name = external.name or external.tensor_name
    return CheckpointTensor(name, _computed(external, stored), external.dtype, tuple(external.shape.numpy()))


def _computed(external: UnboundTensor, stored: WeightSource) -> WeightSource:
    """The stored tensor, transposed and with a number added as the external one refers to it."""
    if not (external.transposed or external.added):
        return stored
    expression = expression_of(stored)
    if external.transposed:
        expression = Transposed(expression)
    if external.added:
        expression = Shifted(expression, external.added)
    return DerivedTensor(stored.name, stored.path, expression)


def tensors_in(path: Path, required_by: str) -> dict[str, WeightSource]:
    """Return the tensors in a checkpoint's file, without their data.

    Args:
        path: A safetensors file or a file of `torch.save`.
        required_by: The name of the constant that refers to it, for the error message.

    Returns:
        The tensors by name.

    Raises:
        ModelError: The file is missing or damaged.
        OSError: The file cannot be read.
    """
    if not path.is_file():
        raise ModelError(
            f"{required_by} is in {path}, which does not exist: bind.weights.py --checkpoint DIR takes the "
            "weights from another folder"
        )
    status = path.stat()
    return _tensors_in(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _tensors_in(path: Path, size: int, mtime: int) -> dict[str, WeightSource]:
    """Read the header once for all constants, and again if the file has changed."""
    if path.name == derived_checkpoint.FILE:
        return derived_checkpoint.read_index(path)
    return dict((safetensors if path.suffix == ".safetensors" else pytorch_file).read_header(path))


def bind(model: Model, checkpoint: str | os.PathLike[str] | None = None, partial: bool = False) -> int:
    """Replace every external tensor of a model by the weight that it refers to.

    Args:
        model: The model, changed in place.
        checkpoint: A folder to take all tensors from, by name; None for the files that are referred to.
        partial: Accept tensors of the checkpoint that the model does not use.

    Returns:
        The number of tensors of the checkpoint that were bound.

    Raises:
        ModelError: Tensors are missing, unused, of another shape or not floating point; the message names
            them.
        OSError: A file of the checkpoint cannot be read.
    """
    external = list(unbound_tensors(model))
    stored = _stored_tensors([tensor for _, tensor in external], checkpoint)
    if problems := _problems(model, [tensor for _, tensor in external], stored, partial):
        missing = [tensor for _, tensor in external if (tensor.path, tensor.tensor_name) not in stored]
        files = dict.fromkeys(str(tensor.path) for tensor in missing or [tensor for _, tensor in external])
        raise ModelError(f"{checkpoint or ', '.join(files)} does not fit the model: it {'; '.join(problems)}")
    for value, tensor in external:
        value.const_value = weight_of(tensor, stored[tensor.path, tensor.tensor_name])
    model.unused = {}
    return len({tensor.key for _, tensor in external})


def _problems(
    model: Model,
    external: Sequence[UnboundTensor],
    stored: Mapping[tuple[Path, str], WeightSource],
    partial: bool,
) -> list[str]:
    """Why the stored tensors cannot be bound; empty if they can."""
    if not external:
        return []
    problems = []
    missing = [tensor.tensor_name for tensor in external if (tensor.path, tensor.tensor_name) not in stored]
    if missing:
        problems.append(f"lacks {listed(dict.fromkeys(missing), 4)}")
    reshaped = {
        name: f"has {name} as {list(tensor.shape)}, not {list(shape)}"
        for path, name, shape in ((t.path, t.tensor_name, t.stored_shape) for t in external)
        if (tensor := stored.get((path, name))) is not None and tensor.shape != shape
    }
    problems += [*list(reshaped.values())[:3], *_changed(model, stored)]
    if not partial:
        used = {tensor.tensor_name for tensor in external}.union(*model.unused.values())
        if unused := sorted({tensor.name for tensor in stored.values()} - used):
            problems.append(
                f"holds {listed(unused, 4)}, which the model does not use (--partial accepts such tensors)"
            )
    return problems


def _changed(model: Model, stored: Mapping[tuple[Path, str], WeightSource]) -> list[str]:
    """Problems of tensors whose numbers were copied into the model at export, as small ones are."""
    embedded = [
        (stored.get((Path(file), name)), name, digest)
        for file, names in model.unused.items()
        for name, digest in names.items()
        if digest and any(path == Path(file) for path, _ in stored)
    ]
    missing = [name for tensor, name, _ in embedded if tensor is None]
    changed = [name for tensor, name, digest in embedded if tensor is not None and tensor.digest() != digest]
    problems = [f"lacks {listed(missing, 4)}"] if missing else []
    if changed:
        problems.append(f"has other numbers for {listed(changed, 4)} than at export (export again)")
    return problems


def _stored_tensors(
    external: Iterable[UnboundTensor], checkpoint: str | os.PathLike[str] | None
) -> dict[tuple[Path, str], WeightSource]:
    """All tensors of the referenced files, or of `checkpoint` if it is given, by file and name."""
    files = {tensor.path: tensor.name or tensor.tensor_name for tensor in external}
    if checkpoint is None:
        return {
            (path, name): stored
            for path, required_by in files.items()
            for name, stored in tensors_in(path, required_by).items()
        }
    tensors = open_checkpoint(checkpoint).tensors
    return {(path, name): stored for path in files for name, stored in tensors.items()}
