"""A checkpoint's folder in, a prefill or decode model out, ready for `o2o.formats.save`."""

from __future__ import annotations

import os
from collections.abc import Callable

from export.circle import convert
from export.graphs import DecodeConcatenated, Graph, Prefill, Static
from export.model import LanguageModel
from export.traced_cache import CacheForm
from export.weights import WeightsForm, WeightsType, bind, match, unused
from o2o.errors import UsageError
from o2o.model import Model
from o2o.rewriting.deduplicate_constants import deduplicate_constants
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.weight import Weight


def prefill(
    directory: str | os.PathLike[str],
    tokens: int = 32,
    attn_implementation: str = "eager",
    capacity: int | None = None,
    weights: WeightsForm = "embed",
    dtype: WeightsType = "float32",
) -> Model:
    """A graph that reads T = `tokens` of a prompt.

    capacity: None for the signature `prefill`, which reads a prompt's beginning and gives its keys and values
    (`export.graphs.Prefill`); S for `prefill_T`, which reads T tokens at any position and writes them into
    caches of S rows (`export.graphs.Static`), so that long prompts can be read in pieces.

    weights: `embed` for a model that is saved with the checkpoint's numbers, whose files must stay until
    then; `external` for one with references to them, which `bind.weights.py` resolves.

    Raises ModelError (what the checkpoint is or lacks), UsageError (more tokens than the model can see or the
    caches can hold).
    """

    def graph(model: LanguageModel) -> Graph:
        if capacity is None:
            return Prefill(model, tokens)
        return Static(model, f"prefill_{tokens}", tokens, capacity)

    return _build(directory, graph, attn_implementation, weights, dtype)


def decode(
    directory: str | os.PathLike[str],
    capacity: int = 30,
    cache: CacheForm = "concat",
    attn_implementation: str = "eager",
    weights: WeightsForm = "embed",
    dtype: WeightsType = "float32",
) -> Model:
    """The graph that reads one token after up to `capacity` others.

    cache: `concat` (`export.graphs.DecodeConcatenated`) or `static` (`Static`). Otherwise as `prefill`.
    """
    forms: dict[str, Callable[[LanguageModel], Graph]] = {
        "concat": lambda model: DecodeConcatenated(model, capacity),
        "static": lambda model: Static(model, "decode", 1, capacity),
    }
    if cache not in forms:
        raise UsageError(f"no cache form {cache!r}: choose {' or '.join(forms)}")
    return _build(directory, forms[cache], attn_implementation, weights, dtype)


def _build(
    directory: str | os.PathLike[str],
    graph_of: Callable[[LanguageModel], Graph],
    attn_implementation: str,
    weights: WeightsForm,
    dtype: WeightsType,
) -> Model:
    checkpoint = open_checkpoint(directory)
    language_model = LanguageModel.read(directory, attn_implementation)
    found = match(language_model, checkpoint)  # before the minutes that a large graph takes
    model = convert(graph_of(language_model))
    bind(model.graphs[0], found, weights, dtype)
    deduplicate_constants(model, only=Weight)  # as bind.weights.py does with those that are bound later
    if weights == "external":
        model.unused = unused(checkpoint, model.graphs[0], found)
    return model
