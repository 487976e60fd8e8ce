"""A checkpoint's folder to a prefill or decode model, ready for `o2o.formats.save`."""

from __future__ import annotations

import os
from collections.abc import Callable

from export.circle import convert_to_circle
from export.model import LanguageModel
from export.modules import ConcatenatedCacheModule, ExportModule, PrefillModule, StaticCacheModule
from export.options import CacheForm, WeightsForm, WeightsType
from export.parameter_matching import match_parameters
from export.traced_graph import StoredParameters, TracedGraph
from o2o.errors import UsageError
from o2o.model import Model
from o2o.weights.checkpoint import open_checkpoint


def prefill(
    directory: str | os.PathLike[str],
    tokens: int = 32,
    attn_implementation: str = "eager",
    capacity: int | None = None,
    weights: WeightsForm = "embed",
    dtype: WeightsType = "float32",
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
    context: int | None = None,
) -> Model:
    """Build a graph that reads T tokens of a prompt.

    Args:
        directory: The checkpoint's folder.
        tokens: T.
        attn_implementation: `grouped`, `flash`, `flash:Q,KV`, or a name that transformers knows.
        capacity: None for the signature `prefill`, which reads a prompt's beginning and gives its keys and
            values (`PrefillModule`). S for `prefill_T`, which reads T tokens at any position and
            writes into caches of S rows (`StaticCacheModule`). It reads long prompts in pieces.
        weights: `embed` for a model that is saved with the checkpoint's weights; its files must stay until
            then. `external` for a model with references, which `bind.weights.py` resolves.
        dtype: The dtype of large matrices.
        strict: Refuse a checkpoint with tensors that the model does not use.
        log: Receives a line about tensors that are skipped.
        context: Rows of the caches that `prefill` fills, for rotary frequencies that depend on it; None for
            `capacity`, or T.

    Returns:
        A Circle model of one signature.

    Raises:
        ModelError: The checkpoint is incomplete, or its architecture cannot be exported.
        UsageError: The model cannot see T tokens, or the caches cannot hold them.
    """

    traced = trace_prefill(directory, tokens, attn_implementation, capacity, strict, log, context)
    return traced.bind(open_checkpoint(directory), weights, dtype)


def decode(
    directory: str | os.PathLike[str],
    capacity: int = 30,
    cache: CacheForm = "concat",
    attn_implementation: str = "eager",
    weights: WeightsForm = "embed",
    dtype: WeightsType = "float32",
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
    context: int | None = None,
) -> Model:
    """Build the graph that reads one token after up to `capacity` others.

    Args:
        directory: The checkpoint's folder.
        capacity: Rows of the KV cache.
        cache: `concat` (`ConcatenatedCacheModule`) or `static` (`StaticCacheModule`).
        attn_implementation: See `prefill`.
        weights: See `prefill`.
        dtype: See `prefill`.
        strict: See `prefill`.
        log: See `prefill`.
        context: See `prefill`; None for `capacity`.

    Returns:
        A Circle model of one signature, `decode`.

    Raises:
        ModelError: The checkpoint is incomplete, or its architecture cannot be exported.
        UsageError: The model cannot see `capacity` tokens, or `cache` is unknown.
    """
    traced = trace_decode(directory, capacity, cache, attn_implementation, strict, log, context)
    return traced.bind(open_checkpoint(directory), weights, dtype)


def trace_prefill(
    directory: str | os.PathLike[str],
    tokens: int,
    attn_implementation: str = "eager",
    capacity: int | None = None,
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
    context: int | None = None,
) -> TracedGraph:
    """Trace the graph of `prefill`, without weights.

    Args:
        directory: See `prefill`.
        tokens: See `prefill`.
        attn_implementation: See `prefill`.
        capacity: See `prefill`.
        strict: See `prefill`.
        log: See `prefill`.
        context: See `prefill`.

    Returns:
        The graph.

    Raises:
        ModelError: See `prefill`.
        UsageError: See `prefill`.
    """

    def graph(model: LanguageModel) -> ExportModule:
        if capacity is None:
            return PrefillModule(model, tokens)
        return StaticCacheModule(model, f"prefill_{tokens}", tokens, capacity)

    return _trace(directory, graph, attn_implementation, context or capacity or tokens, strict, log)


def trace_decode(
    directory: str | os.PathLike[str],
    capacity: int,
    cache: CacheForm,
    attn_implementation: str = "eager",
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
    context: int | None = None,
) -> TracedGraph:
    """Trace the graph of `decode`, without weights.

    Args:
        directory: See `decode`.
        capacity: See `decode`.
        cache: See `decode`.
        attn_implementation: See `decode`.
        strict: See `decode`.
        log: See `decode`.
        context: See `decode`.

    Returns:
        The graph.

    Raises:
        ModelError: See `decode`.
        UsageError: See `decode`.
    """
    forms: dict[str, Callable[[LanguageModel], ExportModule]] = {
        "concat": lambda model: ConcatenatedCacheModule(model, capacity),
        "static": lambda model: StaticCacheModule(model, "decode", 1, capacity),
    }
    if cache not in forms:
        raise UsageError(f"no cache form {cache!r}: choose {' or '.join(forms)}")
    return _trace(directory, forms[cache], attn_implementation, context or capacity, strict, log)


def _trace(
    directory: str | os.PathLike[str],
    graph_of: Callable[[LanguageModel], ExportModule],
    attn_implementation: str,
    context: int,
    strict: bool,
    log: Callable[[str], None],
) -> TracedGraph:
    checkpoint = open_checkpoint(directory)
    model = LanguageModel.read(directory, attn_implementation, context)
    names = {id(source): name for name, source in checkpoint.tensors.items()}
    skipped: list[str] = []
    matched = match_parameters(model, checkpoint, strict, log, skipped.append)  # tracing may take minutes
    stored = {name: names[id(source)] for name, source in matched.items()}
    parameters = StoredParameters(stored, skipped, model.ties, model.are_ties_equal)
    return TracedGraph(convert_to_circle(graph_of(model)), parameters)
