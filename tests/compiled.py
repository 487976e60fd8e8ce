"""Exports whose graphs TICO compiles once for all tests, whatever the weights are: that takes seconds."""

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
    """Within, `export.build` takes what TICO made of the same graph before from the folder `root`.

    A graph is the same when all of the model's configuration is, but how its weights are stored.
    """
    from torch.utils import _pytree

    from export import circle

    compile_graph = circle.compile_graph

    def stored(graph: circle.Graph) -> bytes:
        config = graph.model.config.to_dict() | {"dtype": None, "_name_or_path": None}
        shapes = [list(tensor.shape) for tensor in _pytree.tree_leaves(graph.example())]
        told = [type(graph).__name__, graph.signature, shapes, config]
        name = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
        path = root / f"compiled-{name[:20]}.circle"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_bytes(compile_graph(graph))
        return path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circle, "compile_graph", stored)
        yield
