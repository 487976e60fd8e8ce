"""A checkpoint's folder in, a prefill or decode model out, ready for `o2o.formats.save`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from export.circle import convert
from export.graphs import DecodeConcatenated, DecodeStatic, Graph, Prefill
from export.model import LanguageModel
from export.weights import bind, match
from o2o.errors import UsageError
from o2o.model import Model
from o2o.weights.checkpoint import open_checkpoint

CacheForm = Literal["concat", "static"]


def prefill(directory: str | os.PathLike[str], tokens: int = 32, attn_implementation: str = "eager") -> Model:
    """The graph that reads a prompt of T = `tokens`: see `export.graphs.Prefill`.

    Its weights are references to the checkpoint's files, which must stay until the model is saved. Raises
    ModelError (what the checkpoint is or lacks), UsageError (more tokens than the model can see).
    """
    return _build(directory, lambda model: Prefill(model, tokens), attn_implementation)


def decode(
    directory: str | os.PathLike[str],
    capacity: int = 30,
    cache: CacheForm = "concat",
    attn_implementation: str = "eager",
) -> Model:
    """The graph that reads one token after up to `capacity` others.

    cache: `concat` (`export.graphs.DecodeConcatenated`) or `static` (`DecodeStatic`). Otherwise as `prefill`.
    """
    forms = {"concat": DecodeConcatenated, "static": DecodeStatic}
    if cache not in forms:
        raise UsageError(f"no cache form {cache!r}: choose {' or '.join(forms)}")
    return _build(directory, lambda model: forms[cache](model, capacity), attn_implementation)


def _build(
    directory: str | os.PathLike[str], graph_of: Callable[[LanguageModel], Graph], attn_implementation: str
) -> Model:
    checkpoint = open_checkpoint(directory)
    language_model = LanguageModel.read(directory, attn_implementation)
    found = match(language_model, checkpoint)  # before the minutes that a large graph takes
    model = convert(graph_of(language_model))
    bind(model.graphs[0], found)
    return model
