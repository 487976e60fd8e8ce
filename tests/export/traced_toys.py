"""A checkpoint of a toy model, and its graphs as a trace gives them: without torch and in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from export.traced_graph import StoredParameters, TracedGraph
from o2o.formats.tensors import constant_array
from o2o.model import Model
from tests.o2o.window_graphs import D, S, V, window_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": S,
    "eos_token_id": 2,
}
PARAMETERS = ("words", "head")


def write_toy(directory: Path, seed: int = 0, **fields: Any) -> Path:
    """Write a checkpoint with two tensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | fields))
    generator = np.random.default_rng(seed)
    tensors = {
        f"model.{name}.weight": generator.standard_normal((V, D)).astype(np.float32) for name in PARAMETERS
    }
    save_file(tensors, directory / "model.safetensors")
    return directory


def trace_toy(tokens: int, name: str | None = None) -> TracedGraph:
    """A graph of T tokens, whose embeddings and head are parameters."""
    model: Model = window_model(lengths=(tokens,))
    (graph,), (signature,) = model.graphs, model.signatures
    signature.name = graph.name = name or signature.name
    for parameter in PARAMETERS:
        value = graph.initializers.pop(parameter)
        assert constant_array(value) is not None
        value.const_value = None
        graph.inputs.append(value)
    return TracedGraph(model, StoredParameters({name: f"model.{name}.weight" for name in PARAMETERS}))
