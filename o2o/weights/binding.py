"""References to a checkpoint become the numbers that they refer to, which are read when they are written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from o2o.cli.text import listed
from o2o.errors import ModelError
from o2o.model import Model
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.external import Reference, tensors_in
from o2o.weights.stored_tensor import StoredTensor


def references(model: Model) -> Iterator[tuple[ir.Value, Reference]]:
    """The constants of `model` that are references."""
    for graph in model.graphs:
        for value in (*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())):
            if isinstance(value.const_value, Reference):
                yield value, value.const_value


def bind(model: Model, checkpoint: str | os.PathLike[str] | None = None, partial: bool = False) -> int:
    """Turn every `Reference` of `model` into a `Weight`; how many tensors of the checkpoint that were.

    checkpoint: a folder to take the tensors from, by their names; None for the files that are referred to.
    partial: the checkpoint may hold tensors that the model has no place for.

    Raises ModelError, which names them, for tensors that are missing, left over, of another shape, or not of
    floats.
    """
    found = list(references(model))
    tensors = _tensors([reference for _, reference in found], checkpoint)
    missing = [r for _, r in found if (r.path, r.tensor) not in tensors]
    complaints = []
    if missing:
        complaints.append(f"lacks {listed(dict.fromkeys(r.tensor for r in missing), 4)}")
    reshaped = {
        r.tensor: f"has {r.tensor} as {list(stored.shape)}, not {list(r.stored_shape)}"
        for _, r in found
        if (stored := tensors.get((r.path, r.tensor))) is not None and stored.shape != r.stored_shape
    }
    complaints += list(reshaped.values())[:3]
    if found:
        complaints += _changed(model, tensors)
    if not partial and found:
        known = {r.tensor for _, r in found}.union(*model.unused.values())
        if left := sorted({stored.name for stored in tensors.values()} - known):
            complaints.append(
                f"holds {listed(left, 4)}, which the model has no place for (--partial leaves them out)"
            )
    if complaints:
        where = checkpoint or ", ".join(dict.fromkeys(str(r.path) for r in missing or [r for _, r in found]))
        raise ModelError(f"{where} does not fit the model: it {'; '.join(complaints)}")
    for value, reference in found:
        value.const_value = reference.weight(tensors[reference.path, reference.tensor])
    model.unused = {}
    return len({reference.key for _, reference in found})


def _changed(model: Model, tensors: Mapping[tuple[Path, str], StoredTensor]) -> list[str]:
    """What is wrong with tensors of which the numbers are in `model` already, as the small ones' are."""
    embedded = [
        (tensors.get((Path(file), name)), name, digest)
        for file, names in model.unused.items()
        for name, digest in names.items()
        if digest and any(path == Path(file) for path, _ in tensors)
    ]
    lost = [name for stored, name, _ in embedded if stored is None]
    other = [name for stored, name, digest in embedded if stored is not None and stored.digest() != digest]
    told = [f"lacks {listed(lost, 4)}"] if lost else []
    if other:
        told.append(f"has other numbers for {listed(other, 4)} than the export found (export again)")
    return told


def _tensors(
    wanted: Iterable[Reference], checkpoint: str | os.PathLike[str] | None
) -> dict[tuple[Path, str], StoredTensor]:
    """All tensors of the files that are referred to, by file and name; or, in their place, those of
    `checkpoint`."""
    files = {reference.path: reference.name or reference.tensor for reference in wanted}
    if checkpoint is None:
        return {
            (path, name): stored for path, w in files.items() for name, stored in tensors_in(path, w).items()
        }
    there = open_checkpoint(checkpoint).tensors
    return {(path, name): stored for path in files for name, stored in there.items()}
