"""Caches for exports: each graph is traced and compiled once for all tests, whatever its weights are."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from export.modules import ExportModule

_programs: dict[str, Any] = {}


def graph_key(graph: ExportModule) -> str:
    """Return a digest of the graph, its shapes, attention and the configuration without the stored dtype.

    Args:
        graph: The graph to trace.

    Returns:
        The same text for graphs that are traced to the same program.
    """
    from torch.utils import _pytree

    from export import attention
    from export.options import parse_attention

    model = graph.model
    config = model.config.to_dict() | {"dtype": None, "_name_or_path": None}
    shapes = [list(tensor.shape) for tensor in _pytree.tree_leaves(graph.example())]
    kernel = [*parse_attention(model.attn_implementation), attention._BLOCKS.get()]
    key = [type(graph).__name__, graph.signature, shapes, kernel, model.layers, config]
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:20]


@contextlib.contextmanager
def compiled_once(root: Path) -> Iterator[None]:
    """Within, `export.build_graph` reads a graph that was compiled before from the folder `root`."""
    from export import circle

    compile_graph = circle.compile_graph
    if compile_graph.__module__ == __name__:  # within another call
        yield
        return

    def cached(graph: ExportModule) -> bytes:
        path = root / f"compiled-{graph_key(graph)}.circle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(compile_graph(graph))
        return path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circle, "compile_graph", cached)
        yield


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Within, `tinyllama.verification` traces each program once in this process."""
    from tinyllama.verification import exported

    trace = exported._traced

    def cached(graph: ExportModule) -> Any:
        key = graph_key(graph)
        if key not in _programs:
            _programs[key] = trace(graph)
        return _programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "_traced", cached)
        yield
