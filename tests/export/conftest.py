"""Tiny checkpoints, what Hugging Face computes from them, and a way to run what was exported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o import formats
from o2o.model import Model
from tests.compiled import compiled_once
from tests.exported import checkpoint

Runner = Callable[..., dict[str, np.ndarray]]


@dataclass(frozen=True)
class Reference:
    """What Hugging Face says: of input_ids int64 [1, T], logits [1, T, V] and keys, values [1, K, T, H]."""

    input_ids: np.ndarray
    logits: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]

    def past(self, tokens: int, capacity: int) -> dict[str, np.ndarray]:
        """Caches [1, K, capacity, H] with the first `tokens` filled, and numbers that must not be seen."""
        feeds = {}
        for what, layers in (("key", self.keys), ("value", self.values)):
            for layer, rows in enumerate(layers):
                _, heads, _, size = rows.shape
                cache = np.full((1, heads, capacity, size), 1e3, np.float32)
                cache[:, :, :tokens] = rows[:, :, :tokens]
                feeds[f"past_{what}_{layer}"] = cache
        return feeds


@functools.cache
def reference(directory: Path, tokens: int = 32) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator)
    with torch.no_grad():
        result = model(input_ids, use_cache=True)
    layers = result.past_key_values.layers
    return Reference(
        input_ids.numpy(),
        result.logits.numpy(),
        [layer.keys.numpy() for layer in layers],
        [layer.values.numpy() for layer in layers],
    )


def on_litert(model: Model) -> Runner:
    """The only signature of `model`, as LiteRT runs what a reader of the written file finds."""
    from ai_edge_litert.interpreter import Interpreter

    copy = formats.loads(formats.dumps(model))
    copy.format = "tflite"
    for graph in copy.graphs:
        for node in graph:
            if node.op_type == "BROADCAST_TO":
                node.version = 2  # LiteRT registers no other; TICO writes 1
    content = formats.dumps(copy)
    interpreter = Interpreter(model_content=content)
    run = interpreter.get_signature_runner(copy.signatures[0].name)

    def call(feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return run(**feeds)

    call.interpreter = interpreter  # type: ignore[attr-defined]  # keep it alive
    return call


@functools.cache
def exported(directory: Path, form: str) -> Model:
    """The checkpoint as `prefill` of 32, as `pieces` (prefill of 8 onto caches of 24), or as decode: `concat`
    on 30, `static` on 32. Not to be changed."""
    from export import build_graph

    with compiled_once(directory.parent):
        if form == "prefill":
            return build_graph.prefill(directory)
        if form == "pieces":
            return build_graph.prefill(directory, 8, capacity=24)
        return build_graph.decode(directory, 32 if form == "static" else 30, form)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def demo(shared_directory: Path) -> Path:
    return checkpoint(shared_directory, "demo")


@pytest.fixture(scope="session")
def grouped(shared_directory: Path) -> Path:
    return checkpoint(shared_directory, "grouped")
