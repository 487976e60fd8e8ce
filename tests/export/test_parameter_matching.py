"""Parameters of a model and tensors of a checkpoint are matched by name and shape."""

from __future__ import annotations

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
    # transformers does not tie them either.
    assert "lm_head.weight" in matched(edited(tmp_path / "other", lambda tensors: twice(tensors, 1.0)))


def test_tensors_that_the_model_does_not_use(tmp_path: Path) -> None:
    directory = edited(tmp_path, lambda t: t.update(extra=torch.zeros(1000)))
    model, checkpoint = LanguageModel.read(directory), open_checkpoint(directory)
    lines: list[str] = []
    assert list(match_parameters(model, checkpoint, log=lines.append)) == list(model.parameters)
    assert lines == ["skipped 1 tensor that the model does not use, 0.0 MB: extra (--strict refuses them)"]
    with pytest.raises(ModelError, match="holds extra, which the model does not use"):
        match_parameters(model, checkpoint, strict=True)


def test_a_missing_tensor_and_the_most_similar_name(tmp_path: Path) -> None:
    def misspell(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.upproj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    with pytest.raises(ModelError, match=r"most similar name stored is model.layers.1.mlp.upproj.weight"):
        matched(edited(tmp_path, misspell))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_a_tensor_of_another_dtype(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    directory = edited(tmp_path, lambda t: t.update({"model.norm.weight": torch.zeros(48).to(dtype)}))
    with pytest.raises(ModelError, match=f"model.norm.weight is stored as {name}"):
        matched(directory)
