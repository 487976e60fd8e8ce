"""The text part of a multimodal checkpoint computes what the whole model computes for text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from export.derive import derive, needs_derivation
from export.text_part import text_config
from tests.checkpoints import GROUPED, write_checkpoint
from tinyllama.verification.hugging_face import load

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
}
GEMMA = {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}
IMAGE = {"image_token_index": 90}
QWEN_IDS = {
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}
CASES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | GEMMA,
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "boi_token_index": 91,
        "eoi_token_index": 92,
        **IMAGE,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 16},
        "vision_config": VISION | {"model_type": "pixtral"},
        **IMAGE,
    },
    "qwen2_5_vl": {**TEXT, "rope_scaling": MROPE, "vision_config": QWEN_VISION, **QWEN_IDS},
}
LEFT_OUT = {
    "gemma3": r"multi_modal_projector \(2 tensors, 0.0 MB\), vision_tower \(32 tensors, 0.1 MB\)",
    "mistral3": r"multi_modal_projector \(4 tensors, 0.0 MB\), vision_tower \(11 tensors, 0.1 MB\)",
    "qwen2_5_vl": r"visual \(18 tensors, 0.3 MB\)",
}


@pytest.mark.parametrize("kind", CASES)
def test_the_text_part(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **CASES[kind], eos_token_id=7)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    whole.save_pretrained(tmp_path / "whole")
    if kind == "qwen2_5_vl":  # as on the hub: the fields of the text part are not apart
        fields = {"model_type": kind, "architectures": [type(whole).__name__], "eos_token_id": 7} | CASES[
            kind
        ]
        (tmp_path / "whole" / "config.json").write_text(json.dumps(fields))
    assert needs_derivation(tmp_path / "whole")
    folder = tmp_path / "text"
    folder.mkdir()
    (line,) = derive(tmp_path / "whole", None, folder)
    assert re.search(rf"took the text part \(\w+\) of this {kind} model; left out {LEFT_OUT[kind]}$", line)
    ids = torch.arange(40)[None] % 88
    with torch.no_grad():
        expected, actual = whole(input_ids=ids).logits, load(folder)(ids).logits
    assert (expected - actual).abs().max() < 1e-4 * expected.std()
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 7


def test_a_text_model_is_left_alone(tmp_path: Path) -> None:
    assert not needs_derivation(write_checkpoint(tmp_path, **GROUPED))


def test_tokens_outside_of_the_vocabulary_are_not_taken() -> None:
    """SmolVLM has such a pad_token_id, which no text model can be built with."""
    config = AutoConfig.for_model("mistral3", **CASES["mistral3"], eos_token_id=7)
    config.pad_token_id, config.text_config.pad_token_id = 128_002, 2
    assert text_config(config)["pad_token_id"] == 2
    assert text_config(config)["eos_token_id"] == 7
