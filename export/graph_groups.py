"""Groups of graphs of a package: one is traced, the others are derived from it by another number of tokens.

A static cache is read in the same way by every graph. The prefill of the most tokens is traced, and shorter
prefills and decode follow from it (`o2o.rewriting.resize_tokens`). A graph for which that is not proven is
traced too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from export.graph_cache import GraphCache
from export.graph_specs import GraphSpec
from export.options import WeightsForm, WeightsType
from export.parameter_binding import describe_skipped
from export.traced_graph import TracedGraph
from o2o import formats
from o2o.cli.silence_stderr import suppressed_warnings
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.resize_tokens import TokenResizer
from o2o.weights.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class GraphGroup:
    """Graphs that are derived from one.

    Attributes:
        traced: The graph that is traced.
        derived: The others.
    """

    traced: GraphSpec
    derived: tuple[GraphSpec, ...] = ()

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """All graphs of the group."""
        return (self.traced, *self.derived)

    def is_cached(self, cache: GraphCache, attn_implementation: str) -> bool:
        """Check whether no graph must be traced.

        Args:
            cache: The cache of the checkpoint.
            attn_implementation: See `export.build_graph.prefill`.

        Returns:
            Whether the cache has the traced graph.
        """
        return cache.has(_key(self.traced, attn_implementation))

    def export(
        self,
        directory: Path,
        folder: Path,
        attn_implementation: str,
        weights: WeightsForm,
        dtype: WeightsType,
        debug: bool = False,
        strict: bool = False,
    ) -> list[str]:
        """Make the graphs and write their files.

        Args:
            directory: The checkpoint's folder.
            folder: The folder to write into.
            attn_implementation: See `export.build_graph.prefill`.
            weights: See `export.build_graph.prefill`.
            dtype: See `export.build_graph.prefill`.
            debug: Show the warnings of torch, transformers and TICO.
            strict: See `export.build_graph.prefill`.

        Returns:
            Lines for the user, such as tensors of the checkpoint that are skipped.

        Raises:
            ModelError: The checkpoint is incomplete, or its architecture cannot be exported.
            UsageError: See `export.build_graph.prefill`.
        """
        lines: list[str] = []
        checkpoint = open_checkpoint(directory)
        cache = GraphCache(checkpoint)

        def trace(spec: GraphSpec) -> TracedGraph:
            with contextlib.nullcontext() if debug else suppressed_warnings():
                return traced(spec, checkpoint, cache, attn_implementation, strict, lines.append)

        first = trace(self.traced)
        graphs = {self.traced: first}
        resizer: TokenResizer | None = None
        for spec in self.derived:
            try:
                resizer = resizer or TokenResizer(first.model.signatures[0])
                graphs[spec] = first.resized(resizer, spec.signature, spec.tokens, attn_implementation)
            except MatchFailure as failure:
                lines.append(f"{spec.signature} is not derived from {self.traced.signature}: {failure}")
                graphs[spec] = trace(spec)
        for spec, graph in graphs.items():
            formats.save(graph.bind(checkpoint, weights, dtype), folder / spec.file)
        return lines


def traced(
    spec: GraphSpec,
    checkpoint: Checkpoint,
    cache: GraphCache,
    attn_implementation: str,
    strict: bool,
    log: Callable[[str], None],
) -> TracedGraph:
    """Trace a graph, or read it from the cache.

    Args:
        spec: The graph.
        checkpoint: The checkpoint.
        cache: The cache of the checkpoint.
        attn_implementation: See `export.build_graph.prefill`.
        strict: See `export.build_graph.prefill`.
        log: Receives a line about the tensors that are skipped.

    Returns:
        The graph, without weights.

    Raises:
        ModelError: See `export.build_graph.prefill`.
        UsageError: See `export.build_graph.prefill`.
    """
    key = _key(spec, attn_implementation)
    graph = cache.get(key)
    if graph is None or (strict and graph.parameters.skipped):
        graph = spec.trace(checkpoint.directory, attn_implementation, strict, log)
        cache.store(key, graph)
        return graph
    if graph.parameters.skipped:
        log(describe_skipped(graph.parameters.skipped, checkpoint.tensors))
    for stored in graph.parameters.names.values():
        checkpoint.tensors[stored].check_float()
    return graph


def graph_groups(specs: Sequence[GraphSpec]) -> list[GraphGroup]:
    """Choose which graphs are traced.

    Args:
        specs: The graphs of a package.

    Returns:
        The groups. The graph of the most tokens over static caches is the traced one of its group.
    """
    static = [spec for spec in specs if spec.capacity is not None and spec.cache == "static"]
    by_capacity: dict[int, list[GraphSpec]] = {}
    for spec in sorted(static, key=lambda spec: -spec.tokens):
        assert spec.capacity is not None
        by_capacity.setdefault(spec.capacity, []).append(spec)
    groups = [GraphGroup(first, tuple(others)) for first, *others in by_capacity.values()]
    return [*groups, *(GraphGroup(spec) for spec in specs if spec not in static)]


def _key(spec: GraphSpec, attn_implementation: str) -> dict[str, object]:
    """What else than the architecture decides a graph."""
    return {**asdict(spec), "file": None, "attention": attn_implementation}
