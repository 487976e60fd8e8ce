"""Copies of models in files, which `--check` runs while the models stay as they are."""

from __future__ import annotations

from o2o import formats
from o2o.check.derived_roles import derive_roles
from o2o.check.interface import name_all
from o2o.check.runner import UNNAMED
from o2o.formats.tensor_order import tensor_order
from o2o.model import Model
from o2o.weights.binding import bind

MAIN = "main"
"""The name of a signature for a main graph that has none."""
_MAIN_NAME = "name of the main signature"
"""The metadata entry with that name, in the copies."""


def copied(model: Model, path: str, is_completed: bool = True) -> Model:
    """Return what a file of a model holds, with its weights.

    Names of tensors are those of `model`, where each is unique: a file may have one name for several tensors.

    Args:
        model: The model. It is not changed.
        path: Where to write the file. It must exist as long as the result.
        is_completed: See `loaded`.

    Returns:
        A copy, in which a main graph without a signature has one called `main`.

    Raises:
        ModelError: Weights are missing.
    """
    names = {}
    for graph in model.graphs if model.format != "onnx" else ():
        for value in tensor_order(graph):
            if "name" in value.meta:
                names[value] = value.meta.pop("name")
    metadata = model.metadata
    try:
        if model.format == "onnx":  # a file of ONNX has the name of a signature only with roles
            main = next((s.name for s in model.signatures_of(model.graphs[0])), MAIN)
            model.metadata = [*metadata, (_MAIN_NAME, main.encode())]
        formats.save(model, path)
    finally:
        model.metadata = metadata
        for value, name in names.items():
            value.meta["name"] = name
    copy = loaded(path, is_completed)
    for graph, other in zip(model.graphs, copy.graphs, strict=True):
        if UNNAMED in graph.meta:  # `name_all` has named them in `model`, and so in the file
            other.meta[UNNAMED] = graph.meta[UNNAMED] | other.meta.get(UNNAMED, set())
    return copy


def loaded(path: str, is_completed: bool = True) -> Model:
    """Read a model, with its weights and with roles for caches and positions.

    Args:
        path: The file.
        is_completed: Complete the signatures, see `interface.name_all`.

    Returns:
        The model.

    Raises:
        ModelError: Weights are missing.
    """
    copy = formats.load(path)
    bind(copy, partial=True)
    copy.add_default_signature(dict(copy.metadata).get(_MAIN_NAME, MAIN.encode()).decode())
    if is_completed:
        name_all(copy)
    derive_roles(copy)
    return copy
