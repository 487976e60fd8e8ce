from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from export.model import LanguageModel
from o2o.errors import ModelError, UsageError
from tests.checkpoints import DEMO, GROUPED, write_checkpoint


def test_parameters_are_shapes_only_and_computed_buffers_are_real(grouped: Path) -> None:
    model = LanguageModel.read(grouped)

    assert all(parameter.is_meta for parameter in model.module.parameters())
    buffers = dict(model.module.named_buffers())
    real = dict(AutoModelForCausalLM.from_pretrained(grouped).named_buffers())
    assert set(buffers) == set(real) != set()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, real[name])


def test_tied_embeddings_are_one_parameter(grouped: Path, demo: Path) -> None:
    tied, untied = LanguageModel.read(grouped), LanguageModel.read(demo)
    assert tied.aliases == {"model.embed_tokens.weight": ["lm_head.weight"]}
    assert "lm_head.weight" not in tied.parameters
    assert untied.aliases == {}
    assert untied.parameters["lm_head.weight"] == (512, 64)


def test_the_shape_of_the_cache(grouped: Path) -> None:
    model = LanguageModel.read(grouped)
    assert (model.layers, set(model.cache_shapes)) == (3, {(2, 10)})
    model = LanguageModel(LlamaConfig(**DEMO | {"num_key_value_heads": None, "head_dim": None}))
    assert set(model.cache_shapes) == {(16, 4)}


def test_dummies_take_no_memory(demo: Path) -> None:
    model = LanguageModel.read(demo)
    for dummy, shape in zip(model.dummies(), model.parameters.values(), strict=True):
        assert dummy.shape == shape
        assert dummy.untyped_storage().nbytes() == 4


def test_frequencies_that_are_scaled_are_computed_too() -> None:
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    config = LlamaConfig(**GROUPED, rope_parameters=scaled)
    ours = LanguageModel(config).module.model.rotary_emb.inv_freq
    torch.testing.assert_close(ours, AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({}, "config.json"),
        ({"model_type": "mamba"}, "state-space"),
        ({"model_type": "t5"}, "this t5 model is an encoder-decoder"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ],
)
def test_a_config_that_is_no_model(tmp_path: Path, config: dict[str, Any], complaint: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=complaint) as error:
        LanguageModel.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{,")
    with pytest.raises(ModelError, match=r"config\.json"):
        LanguageModel.read(tmp_path)


def test_a_context_that_the_model_cannot_see(tmp_path: Path) -> None:
    model = LanguageModel.read(
        write_checkpoint(tmp_path, model_type="mistral", **GROUPED | {"sliding_window": 16})
    )
    model.check_length(64)
    with pytest.raises(UsageError, match="this mistral model has 64 positions: use 64 or less"):
        model.check_length(65)
    with pytest.raises(UsageError, match="a context of 0: use 1 or more"):
        model.check_length(0)


GEMMA3N = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "hidden_size": 48,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "intermediate_size": [64, 64],
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "activation_sparsity_pattern": [0.0, 0.0],
}


def test_buffers_are_those_of_the_innermost_model() -> None:
    """The head of Gemma 3n cannot initialize its text model."""
    model = LanguageModel(AutoConfig.for_model("gemma3n_text", **GEMMA3N))
    assert not any(buffer.isnan().any() for buffer in model.module.buffers())


def test_buffers_that_transformers_fails_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, module: object) -> None:
        raise AttributeError("no attribute")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaPreTrainedModel._init_weights", fails)
    with pytest.raises(
        ModelError, match=r"^llama: transformers cannot compute the buffers of model\.rotary_emb"
    ):
        LanguageModel(AutoConfig.for_model("llama", **GROUPED))
