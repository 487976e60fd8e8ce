"""Architectures that transformers cannot build are refused before it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.architectures import causal_models, check_architecture
from export.config import CheckpointConfig
from export.families import FAMILIES
from o2o.errors import ModelError


def config_of(model_type: str) -> CheckpointConfig:
    return CheckpointConfig({"model_type": model_type}, "folder")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", *FAMILIES])
def test_known(model_type: str) -> None:
    assert model_type in causal_models()
    check_architecture(config_of(model_type), Path("folder"))


def test_unknown() -> None:
    with pytest.raises(ModelError) as caught:
        check_architecture(config_of("lama"), Path("folder"))
    assert str(caught.value) == (
        "folder: the installed transformers has no causal language model of type 'lama': did you mean llama?"
    )
