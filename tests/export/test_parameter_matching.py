"""Parameters of a model and tensors of a checkpoint are matched by name and shape."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.model import LanguageModel
from export.parameter_matching import match_parameters
from o2o.errors import ModelError
from o2o.weights.checkpoint import open_checkpoint
from tests.checkpoints import GROUPED, write_checkpoint


def edited(directory: Path, edit: Any) -> Path:
    """A checkpoint whose tensors went through `edit`, a function that changes a dict."""
    write_checkpoint(directory, **GROUPED)
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def matched(directory: Path) -> dict[str, Any]:
    return match_parameters(LanguageModel.read(directory), open_checkpoint(directory))


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, which the model does not use"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(7)}), "has model.norm.weight as [7], not [48]"),
        (lambda t: [t.pop(name) for name in sorted(t)[:9]], "and 5 more"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, edit: Any, complaint: str) -> None:
    with pytest.raises(ModelError, match=re.escape(complaint)):
        matched(edited(tmp_path, edit))


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert name not in matched(edited(tmp_path, lambda t: t.update({name: torch.zeros(5)})))


def test_a_tied_parameter_under_its_other_name(tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    found = matched(edited(tmp_path, rename))
    assert found["model.embed_tokens.weight"].name == "lm_head.weight"


def test_a_tied_parameter_stored_twice(tmp_path: Path) -> None:
    def twice(tensors: dict[str, torch.Tensor], difference: float = 0) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + difference

    assert "lm_head.weight" not in matched(edited(tmp_path / "same", twice))
    directory = edited(tmp_path / "other", lambda tensors: twice(tensors, 1.0))
    with pytest.raises(ModelError, match="set tie_word_embeddings to false"):
        matched(directory)

    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert "lm_head.weight" in matched(directory)
