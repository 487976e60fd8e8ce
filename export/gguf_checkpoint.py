"""A GGUF file as a derived checkpoint: configuration, tokenizer, and weights that are dequantized by rows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.gguf_config import config_of, generation_config_of
from export.gguf_tokenizer import write_tokenizer
from export.gguf_weights import weights_of
from export.model import summarize_error
from o2o.cli.text import counted, listed
from o2o.errors import ModelError, O2oError
from o2o.weights.derived_checkpoint import FILE, write_index
from o2o.weights.gguf_file import read_gguf


def derive_gguf(path: Path, folder: Path) -> list[str]:
    """Make a derived checkpoint of a GGUF file.

    Args:
        path: The GGUF file.
        folder: An empty folder to fill.

    Returns:
        Lines for the user.

    Raises:
        ModelError: The file is damaged, or has something that transformers' model does not have.
        OSError: A file cannot be read or written.
    """
    file = read_gguf(path)
    fields = config_of(file)
    try:
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        weights, unused = weights_of(file, model, fields)
    except O2oError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path}: transformers cannot build this {file.architecture} model: {summarize_error(error)}"
        ) from error
    config.dtype = None
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation_config_of(file)), encoding="utf-8")
    write_index(folder / FILE, weights)
    lines = [f"{path.name}: skipped {counted(len(unused), 'tensor')}: {listed(unused, 4)}"] if unused else []
    if reason := write_tokenizer(file, folder):
        lines.append(reason)
    return lines
