"""A model of one's own in place of one of transformers: traced graphs compute what its module computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from export.hub import resolve
from export.model import LanguageModel, read_config
from export.modules import ConcatenatedCacheModule, PrefillModule, StaticCacheModule
from export.parameter_matching import match_parameters
from o2o.errors import ModelError
from o2o.weights.checkpoint import open_checkpoint
from tests.export.authoring.conftest import BLOCKS, PLAIN
from tests.export.authoring.test_building_blocks import run
from tinyllama.verification.hugging_face import HuggingFace


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))


def weights_of(folder: Path, model: LanguageModel) -> list[torch.Tensor]:
    matched = match_parameters(model, open_checkpoint(folder))
    return [torch.from_numpy(matched[name].read_float32()) for name in model.parameters]


@torch.no_grad()
@pytest.mark.parametrize("text", [PLAIN, BLOCKS], ids=["plain", "blocks"])
@pytest.mark.parametrize("implementation", ["eager", "grouped", "flash"])
def test_graphs(with_weights: Any, text: str, implementation: str) -> None:
    _, weights_file, module = with_weights(text)
    folder = resolve(weights_file)
    model = LanguageModel.read(folder, implementation)
    weights, capacity = weights_of(folder, model), 16
    ids = torch.randint(40, (1, 12))
    expected = run(module, ids, [12])
    close = {"atol": 1e-5, "rtol": 1e-5}
    prefill = PrefillModule(model, 12)
    logits, *rows = prefill(ids, weights)
    torch.testing.assert_close(logits, expected, **close)
    if text == BLOCKS:
        assert model.cache_shapes == [(2, 6)] * 2 + [(3, 6)] * 2 + [(1, 6)] * 2
    caches = [torch.full((1, heads, capacity, size), 9.0) for heads, size in model.cache_shapes]
    for first, count in ((0, 8), (8, 3), (11, 1)):
        piece = StaticCacheModule(model, "piece", count, capacity)
        logits, *caches = piece(ids[:, first : first + count], torch.tensor([first]), caches, weights)
        torch.testing.assert_close(logits, expected[:, first : first + count], **close)
    if implementation == "eager":
        past = [torch.cat([one[:, :, :11], torch.full_like(one[:, :, :3], 9.0)], 2) for one in rows]
        decode = ConcatenatedCacheModule(model, 14)
        logits = decode(ids[:, 11:], torch.tensor([11]), past, weights)
        torch.testing.assert_close(
            logits[0] if isinstance(logits, tuple) else logits, expected[:, 11:], **close
        )


def test_windows_are_in_the_contract(with_weights: Any) -> None:
    _, weights, _ = with_weights(BLOCKS)
    module = StaticCacheModule(LanguageModel.read(resolve(weights), "grouped"), "decode", 1, 16)
    roles = {role.layer: role.window for role in module.outputs.values() if role.layer is not None}
    assert roles == {0: 5, 1: None, 2: 5}


def test_the_reference_of_verification(with_weights: Any) -> None:
    _, weights, module = with_weights(BLOCKS)
    reference = HuggingFace(resolve(weights))
    ids = torch.randint(40, (1, 11))
    expected = run(module, ids, [11])[0]
    assert reference.source == "mine.py, run by PyTorch"
    torch.testing.assert_close(
        torch.from_numpy(reference.scores(ids[0].tolist())), expected, atol=1e-5, rtol=1e-5
    )
    reference.prefill(ids[0, :8].tolist())
    for at in range(8, 11):
        logits = torch.from_numpy(reference.decode(int(ids[0, at]), at))
        torch.testing.assert_close(logits, expected[at], atol=1e-5, rtol=1e-5)
    assert reference.rounding(ids[0].tolist()).max() < 1e-4


def test_generate_of_transformers(with_weights: Any) -> None:
    _, weights, module = with_weights(PLAIN)
    folder = resolve(weights)
    LanguageModel.read(folder)  # registers the model
    model = AutoModelForCausalLM.from_config(read_config(folder))
    model.model.load_state_dict(module.state_dict())
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        cached = model(
            ids[:, 2:], past_key_values=model(ids[:, :2], past_key_values=DynamicCache()).past_key_values
        )
    torch.testing.assert_close(cached.logits, run(module, ids, [3])[:, 2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.o(y)", "self.nothing(y)", r"mine.py:\d+: AttributeError"),
        ("+ mask", "+ mask[:, :, :, 1:]", r"mine.py:\d+: RuntimeError"),
        ("cache.update(key, value, self.layer)", "(key, value)", "0 of the 2 layers"),
    ],
)
def test_a_model_that_fails_when_it_runs(with_weights: Any, old: str, new: str, message: str) -> None:
    path, weights, _ = with_weights(PLAIN)
    path.write_text(PLAIN.replace(old, new))
    model = LanguageModel.read(resolve(weights))
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ModelError, match=message):
        PrefillModule(model, 4)(ids, model.dummies())
