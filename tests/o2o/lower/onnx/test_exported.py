"""Exported checkpoints in ONNX say what transformers says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o import formats
from o2o.errors import ModelError
from o2o.filters import downcast_input_ids, fuse_attention, reshape_io, transpose_io_kvcache
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from tests.checkpoints import GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.exported import SHAPES
from tests.exported import checkpoint as random_checkpoint
from tests.o2o.lower.onnx.running import FORMS, Running, checked, chunks
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")
S = 32


@cache
def of_transformers(checkpoint: Path, ids: tuple[int, ...]) -> np.ndarray:
    """The logits behind each of `ids`: [len(ids), V]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


def compare(model: Callable[[], Model], checkpoint: Path, V: int, form: str) -> None:
    ids = np.random.default_rng(7).integers(0, V, S).tolist()
    expected = of_transformers(checkpoint, tuple(ids))
    running = Running(checked(model(), form))
    for start, stop in chunks(S, [5, 9]):
        logits = running.step(ids[start:stop], start).reshape(-1)
        assert_close(logits, expected[stop - 1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_guides_decode(
    shape: str, form: str, exported_model: Callable[[str, str], Path], shared_directory: Path, tmp_path: Path
) -> None:
    """Concatenated caches, fused, grown and transposed; ids as int32."""
    heads, size = SHAPES[shape]["num_key_value_heads"], SHAPES[shape]["head_dim"]
    steps = [
        (fuse_attention, []),
        (reshape_io, ["input", "--by_shape", f"[1,{heads},{S - 2},{size}]", f"[1,{heads},{S},{size}]"]),
        (transpose_io_kvcache, []),
        (downcast_input_ids, []),
    ]
    path = exported_model(shape, "concat")
    for number, (step, arguments) in enumerate(steps):
        out = tmp_path / f"{number}.circle"
        assert step.main([*arguments, str(path), "-o", str(out)]) == 0  # type: ignore[attr-defined]
        path = out
    directory = random_checkpoint(shared_directory, shape)
    compare(lambda: formats.load(path), directory, SHAPES[shape]["vocab_size"], form)


SMALL = {"vocab_size": 131, "bos_token_id": 1, "eos_token_id": 2}
GPT = SMALL | {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "qwen2": {"model_type": "qwen2"},  # biases
    "qwen3": {"model_type": "qwen3"},  # norms of queries and keys
    "wide heads": {"head_dim": 16},
    "qwen2, wide heads": {"model_type": "qwen2", "head_dim": 16, "hidden_size": 96, "num_hidden_layers": 2},
    "phi3, a part of the head rotated": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.4,
        **{f"{token}_token_id": 0 for token in ("pad", "bos", "eos")},
    },
    "gemma2, soft-cap": {"model_type": "gemma2", "query_pre_attn_scalar": 7, "sliding_window": 64},
    "cohere, neighbors rotated": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.25},
}
SCATTERED: dict[str, dict[str, Any]] = {
    "gptj": GPT | {"model_type": "gptj", "rotary_dim": 4, "tie_word_embeddings": False},
    "mpt": SMALL | {"model_type": "mpt", "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64},
}
"""Families without transformers' attention interface."""


@pytest.fixture(scope="module")
def variants(
    shared_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Checkpoint and decode graph, with `o2o.attention` or scattered attention on caches written in place."""

    @cache
    def paths(name: str) -> tuple[Path, Path]:
        from export import build_graph

        folder = tmp_path_factory.mktemp("variant")
        scattered = name in SCATTERED
        config = SCATTERED[name] if scattered else {**GROUPED, "num_hidden_layers": 1, **VARIANTS[name]}
        write_checkpoint(folder, **config)
        with compiled_once(shared_directory):
            model = build_graph.decode(folder, S, "static", "eager" if scattered else "grouped")
        formats.save(model, folder / "decode.circle")
        return folder, folder / "decode.circle"

    return paths


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*VARIANTS, *SCATTERED])
def test_attention_that_is_not_fused(
    name: str, form: str, variants: Callable[[str], tuple[Path, Path]]
) -> None:
    folder, path = variants(name)
    compare(lambda: formats.load(path), folder, GROUPED["vocab_size"], form)


def test_one_product_for_queries_keys_and_values(variants: Callable[[str], tuple[Path, Path]]) -> None:
    """Where the exported graph has three, with biases."""
    _, path = variants("qwen2, wide heads")
    kinds = [node.op_type for node in lower_to_onnx(formats.load(path), "ort").graph]
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("Gemm") == 2 * 5 + 1


@pytest.mark.parametrize("form", FORMS)
def test_scattered_attention(
    form: str, exported_model: Callable[[str, str], Path], shared_directory: Path
) -> None:
    """Attention that no filter has fused."""
    path = exported_model("demo", "static")
    directory = random_checkpoint(shared_directory, "demo")
    compare(lambda: formats.load(path), directory, SHAPES["demo"]["vocab_size"], form)


def test_scattered_attention_of_concatenated_caches(exported_model: Callable[[str, str], Path]) -> None:
    with pytest.raises(ModelError, match=r"export the decode graph with --cache static"):
        lower_to_onnx(formats.load(exported_model("demo", "concat")))
