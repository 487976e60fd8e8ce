"""Every model type of transformers is planned, or refused with a plain reason, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.architectures import causal_models, declaration
from export.config import CheckpointConfig
from export.preflight import check_model, reasons
from o2o.errors import ModelError
from tests.checkpoints import GROUPED
from tests.conftest import ROOT

PLANNED = {
    *("apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "ctrl", "cwm"),
    "cohere_compass_text",
    *("diffllama", "doge", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
    *("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gptj", "granite", "granite_swa"),
    *("helium", "hunyuan_v1_dense", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama"),
    *("ministral", "ministral3", "mistral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo"),
    *("olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3"),
    *("stablelm", "starcoder2", "vaultgemma", "xglm"),
}
"""Types whose graphs were compared with transformers."""


def config_of(model_type: str, **fields: Any) -> CheckpointConfig:
    return CheckpointConfig({"model_type": model_type, **fields}, "folder")


def reason(model_type: str, **fields: Any) -> str:
    return next(reasons(config_of(model_type, **fields)), "")


@pytest.mark.parametrize("model_type", sorted(causal_models()))
def test_every_causal_model_is_planned_or_refused(model_type: str) -> None:
    """With the defaults of its configuration."""
    text = reason(model_type)
    assert (text == "") == (model_type in PLANNED), text
    if text:
        assert len(text) < 220
        assert "\n" not in text
        assert not text.endswith(".")
        assert not any(word in text for word in ("Error", "Traceback", "None", "{"))


@pytest.mark.parametrize("model_type", sorted(PLANNED))
def test_facts_of_planned_models(model_type: str) -> None:
    config = config_of(model_type)
    assert min(config.layers, config.heads, config.kv_heads, config.head_dim) > 0
    assert config.heads % config.kv_heads == 0
    assert declaration(model_type).defaults


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_type": "t5"}, "is an encoder-decoder"),
        ({"model_type": "bart"}, "is an encoder-decoder"),
        ({"model_type": "whisper"}, "is an encoder-decoder"),
        ({"model_type": "trocr"}, "the decoder of an encoder-decoder"),
        ({"model_type": "bert"}, "is an encoder, which predicts no next token"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "is_decoder is not true"),
        ({"model_type": "roberta", "is_decoder": True}, "counts positions from its padding token"),
        ({"model_type": "distilbert"}, "is an encoder"),
        ({"model_type": "resnet"}, "is a vision model"),
        ({"model_type": "vit"}, "is a vision model"),
        ({"model_type": "wav2vec2"}, "is an audio model"),
        ({"model_type": "git"}, "reads more than text, and has no separate language model"),
        ({"model_type": "llava"}, "is a multimodal model"),
        ({"model_type": "mixtral"}, "a mixture of 8 experts"),
        ({"model_type": "olmoe"}, "a mixture of 64 experts"),
        ({"model_type": "mixtral", "num_local_experts": 1}, "a mixture of 1 expert, "),
        (
            {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
            "no language model of its own for the text part (mllama_text_model) of this mllama model",
        ),
        (
            {
                "model_type": "mllama",
                "text_config": {"model_type": "mllama_text_model", "cross_attention_layers": [3]},
            },
            "this mllama model has layers that attend to images",
        ),
        (
            {"model_type": "emu3", "text_config": {"model_type": "emu3_text_model"}},
            "no language model of its own for the text part (emu3_text_model) of this emu3 model",
        ),
        ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}}, "a mixture of 16 experts"),
        ({"model_type": "deepseek_v3"}, "multi-head latent attention (MLA)"),
        ({"model_type": "minicpm3"}, "multi-head latent attention (MLA)"),
        ({"model_type": "mamba"}, "state-space or other recurrent layers"),
        ({"model_type": "rwkv"}, "has no attention heads"),
        ({"model_type": "jamba"}, "state-space or other recurrent layers"),
        ({"model_type": "recurrent_gemma"}, "state-space or other recurrent layers"),
        ({"model_type": "lfm2"}, "state-space or other recurrent layers"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "linear_att"),
        ({"model_type": "llama", "layer_types": ["full_attention", "conv"]}, "layers of kind conv"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention", "mamba"]}, "layers of kind mamba"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "attends in both directions"),
        ({"model_type": "gemma2", "use_bidirectional_attention": "all"}, "attends in both directions"),
        ({"model_type": "gemma2", "use_bidirectional_attention": "vision"}, ""),
        ({"model_type": "llama", "is_causal": False}, "attends in both directions"),
        ({"model_type": "gemma3n_text"}, "share keys and values"),
        ({"model_type": "llama", "num_key_value_heads_per_layer": [1, 2]}, "differ in the number or size"),
        ({"model_type": "llama", "per_layer_config": {"5": {"head_dim": 8}}}, "differ in the number"),
        ({"model_type": "llama", "rope_scaling": {"type": "proportional"}}, "of type proportional"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            "rotary embeddings of type longrope without long_factor, original_max_position_embeddings",
        ),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized (gptq)"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "ends in ForCausalLM"),
        ({"model_type": "llama", "num_attention_heads": [4, 8]}, "differ in the number or size"),
        ({"model_type": "lama"}, "no causal language model of type 'lama': did you mean llama?"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, ""),
        ({"model_type": "bert", "is_decoder": True}, ""),
        ({"model_type": "gpt2", "is_decoder": False, "add_cross_attention": False}, ""),
        ({"model_type": "llama", "num_experts": 1}, ""),
        (
            {"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 4},
            "6 query heads cannot share 4 key/value heads evenly",
        ),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "ends in ForCausalLM"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"], "num_local_experts": 0}, ""),
        ({"model_type": "lfm2", "layer_types": ["full_attention"]}, ""),
        (
            {
                "model_type": "bert-generation",
                "is_decoder": True,
                "architectures": ["BertGenerationDecoder"],
            },
            "",
        ),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, ""),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}, ""),
    ],
)
def test_reasons(fields: dict[str, Any], text: str) -> None:
    actual = next(reasons(CheckpointConfig(fields, "folder")), "")
    assert text in actual
    assert bool(text) == bool(actual)


def test_a_factor_that_is_no_number() -> None:
    with pytest.raises(
        ModelError, match=r"no usable config\.json \(factor of the rotary embedding is '2'\)$"
    ):
        check_model(config_of("llama", rope_scaling={"type": "linear", "factor": "2"}), "folder")


def test_the_message_names_the_checkpoint() -> None:
    with pytest.raises(ModelError, match=r"^folder: this mixtral model is a mixture of 8 experts"):
        check_model(config_of("mixtral"), "folder")
    check_model(config_of("llama", **GROUPED), "folder")


@pytest.mark.parametrize("model_type", ["t5", "bert", "mixtral", "deepseek_v3", "mamba", "gemma3n_text"])
def test_a_refusal_comes_before_torch(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    program = (
        "import sys\nfrom o2o.__main__ import main\n"
        f"code = main(['convert', {str(tmp_path)!r}, '-o', 'p'], 'o2o')\n"
        "print(code, [m for m in ('torch', 'transformers', 'tico') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "1 []", done.stderr
    assert done.stderr.startswith(f"o2o convert: {tmp_path}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "p").exists()
