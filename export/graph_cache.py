"""The cache of weightless graphs: a second checkpoint of the same architecture needs neither torch nor TICO.

An entry of the disk cache (`o2o.streams.disk_cache`) has a traced graph and the names of its parameters. Its
key is a hash of all that decides the graph:

    config.json without the fields of `DESCRIPTIVE`; names and shapes of all stored tensors; the options;
    the source of this program; the versions of Python and of the libraries that trace and write graphs

Entries have a hash of their files, so a damaged one is traced again. Models that are defined by code outside
of this program are never stored.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from export.config import CheckpointConfig
from export.loading_flags import is_trusted, model_file, uses_graph_cache
from export.tied_parameters import have_equal_numbers
from export.traced_graph import StoredParameters, TracedGraph
from o2o import formats
from o2o.errors import O2oError
from o2o.streams.disk_cache import DiskCache, user_cache
from o2o.weights.checkpoint import Checkpoint

DESCRIPTIVE = frozenset(
    {
        *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "task_specific_params"),
        *("output_attentions", "output_hidden_states", "return_dict", "initializer_range"),
    }
)
"""Fields of config.json that do not change the graph."""
LIBRARIES = ("torch", "transformers", "tico", "circle-schema", "onnx-ir", "flatbuffers", "numpy")
GRAPH, RECORD = "graph.circle", "graph.json"


class GraphCache:
    """The traced graphs of one checkpoint in the disk cache, and of all others of its architecture."""

    def __init__(self, checkpoint: Checkpoint, cache: DiskCache | None = None) -> None:
        """Read what identifies the architecture.

        Args:
            checkpoint: The checkpoint.
            cache: Where graphs are stored; None for the user's disk cache.

        Raises:
            ModelError: The folder has no usable config.json.
        """
        config = CheckpointConfig.read(checkpoint.directory)
        cache = cache or user_cache()
        is_ours = model_file() is None and not is_trusted()
        self._cache = cache if is_ours and uses_graph_cache() else None
        self._checkpoint = checkpoint
        self._label = f"graph: {config.model_type}, {config.layers} layers"
        fields = json.loads((checkpoint.directory / "config.json").read_bytes())
        self._architecture = [
            {name: value for name, value in fields.items() if name not in DESCRIPTIVE},
            sorted((name, tensor.shape) for name, tensor in checkpoint.tensors.items()),
        ]

    def has(self, options: Mapping[str, Any]) -> bool:
        """Check whether there is an entry. `get` reads it, and finds none if it is damaged.

        Args:
            options: See `get`.

        Returns:
            Whether an entry was stored for these options.
        """
        return self._cache is not None and self._cache.get(self._key(options)) is not None

    def get(self, options: Mapping[str, Any]) -> TracedGraph | None:
        """Read a graph.

        Args:
            options: What else decides the graph, for JSON: its lengths, its attention.

        Returns:
            The graph; None if there is none for this checkpoint.
        """
        if self._cache is None or (entry := self._cache.get(self._key(options))) is None:
            return None
        try:
            data = (entry / GRAPH).read_bytes()
            record = json.loads((entry / RECORD).read_bytes())
            parameters = StoredParameters(**record["parameters"])
            if record["sha256"] != _hash(data, json.dumps(record["parameters"]).encode()):
                return None
            model = formats.loads(data)
        except (OSError, ValueError, KeyError, TypeError, O2oError):
            return None
        are_equal = have_equal_numbers(parameters.ties, self._checkpoint.tensors)
        return TracedGraph(model, parameters) if are_equal == parameters.are_ties_equal else None

    def store(self, options: Mapping[str, Any], traced: TracedGraph) -> None:
        """Store a graph. Errors of the file system are ignored: the next conversion traces it again.

        Args:
            options: See `get`.
            traced: The graph, which has no weights yet.
        """
        if self._cache is None:
            return
        data = formats.dumps(traced.model)
        of = traced.parameters
        parameters = {
            "names": dict(of.names),
            "skipped": list(of.skipped),
            "ties": [list(group) for group in of.ties],
            "are_ties_equal": of.are_ties_equal,
        }
        record = {"parameters": parameters, "sha256": _hash(data, json.dumps(parameters).encode())}
        source = _hash(json.dumps([self._architecture, options]).encode())
        label = f"{self._label}, {traced.model.signatures[0].name} of {options['context']} tokens"
        with (
            contextlib.suppress(OSError),
            self._cache.add(self._key(options), source, len(data), label) as folder,
        ):
            (folder / GRAPH).write_bytes(data)
            (folder / RECORD).write_text(json.dumps(record))

    def _key(self, options: Mapping[str, Any]) -> str:
        return _hash(
            json.dumps([self._architecture, options, _toolchain()]).encode("utf-8", "surrogatepass")
        )[:32]


@functools.cache
def _toolchain() -> list[str]:
    """The source of this program and the versions of the libraries."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for name in ("export", "o2o") for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    versions = []
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{library} {metadata.version(library)}")
    return [digest.hexdigest(), sys.version, *versions]


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
