"""Compilation cache for exports: TICO compiles each graph once for all tests, whatever its weights are."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock


@contextlib.contextmanager
def compiled_once(root: Path) -> Iterator[None]:
    """Within, `export.build_graph` reads a graph that was compiled before from the folder `root`.

    The key is the graph, its shapes, the attention implementation and the model's configuration, without the
    dtype of the stored weights.
    """
    from torch.utils import _pytree

    from export import circle

    compile_graph = circle.compile_graph

    def stored(graph: circle.Graph) -> bytes:
        config = graph.model.config.to_dict() | {"dtype": None, "_name_or_path": None}
        shapes = [list(tensor.shape) for tensor in _pytree.tree_leaves(graph.example())]
        attention = graph.model.attn_implementation
        key = [type(graph).__name__, graph.signature, shapes, attention, config]
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        path = root / f"compiled-{name[:20]}.circle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(compile_graph(graph))
        return path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circle, "compile_graph", stored)
        yield
