"""The graphs of a package: their signatures, files and lengths, and how one of them is exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.options import CacheForm
from o2o.errors import UsageError

if TYPE_CHECKING:
    from export.traced_graph import TracedGraph

PREFILL_LENGTHS = (64, 128, 256)  # the default: those that fit the context


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        signature: `prefill`, `prefill_T` or `decode`.
        file: The name of its file.
        tokens: T, tokens that it reads at a time.
        capacity: S, rows of its KV caches; None for a prefill without caches.
        cache: The form of decode's cache.
        context: Tokens of context of all graphs of the package; None for `capacity`, or `tokens`.
    """

    signature: str
    file: str
    tokens: int
    capacity: int | None
    cache: CacheForm = "static"
    context: int | None = None

    def trace(
        self,
        directory: Path,
        attn_implementation: str,
        strict: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> TracedGraph:
        """Trace the graph. Imports torch, which takes seconds.

        Args:
            directory: The checkpoint's folder.
            attn_implementation: See `export.build_graph.prefill`.
            strict: See `export.build_graph.prefill`.
            log: See `export.build_graph.prefill`.

        Returns:
            The graph, without weights.

        Raises:
            ModelError: See `export.build_graph.prefill`.
            UsageError: See `export.build_graph.prefill`.
        """
        from export import build_graph

        attention, more = attn_implementation, (strict, log, self.context)
        if self.signature != "decode":
            return build_graph.trace_prefill(directory, self.tokens, attention, self.capacity, *more)
        assert self.capacity is not None
        return build_graph.trace_decode(directory, self.capacity, self.cache, attention, *more)


def graph_specs(
    max_length: int, prefill_lengths: Sequence[int] | None = None, cache: CacheForm = "concat"
) -> list[GraphSpec]:
    """List the graphs of a package.

    Args:
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill, which starts at any position. None for the `PREFILL_LENGTHS` that
            fit. If none fits, or the sequence is empty, one prefill reads S tokens from position 0.
        cache: The form of the KV cache. `concat` is for fuse.attention.py: decode appends the new row to S -
            2 others. The names of files that must be fused end in `_`. `static` needs no fusing.

    Returns:
        The prefills, shortest first, then decode.

    Raises:
        UsageError: The lengths exclude each other.
    """
    least = 3 if cache == "concat" else 1
    if max_length < least:
        raise UsageError(f"--max-length {max_length}: give at least {least} with --cache {cache}")
    if prefill_lengths is None:
        prefill_lengths = [length for length in PREFILL_LENGTHS if length <= max_length]
    lengths = sorted(prefill_lengths)
    if len(set(lengths)) != len(lengths):
        raise UsageError(f"--prefill-lengths {','.join(map(str, lengths))}: give each length once")
    for length in lengths:
        if not 1 <= length <= max_length:
            raise UsageError(f"--prefill-lengths: {length} tokens do not fit into --max-length {max_length}")
    suffix = "_" if cache == "concat" else ""
    of_package = partial(GraphSpec, context=max_length)
    prefills = [of_package(f"prefill_{n}", f"prefill_{n}{suffix}.circle", n, max_length) for n in lengths]
    decode = of_package("decode", f"decode{suffix}.circle", 1, max_length - (2 if suffix else 0), cache)
    return [*(prefills or [of_package("prefill", "prefill.circle", max_length, None)]), decode]
