"""The text part of a multimodal model as a derived checkpoint; what is left out is counted."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from export.architectures import TEXT_MODELS
from export.model import read_config, summarize_error
from export.package_files import copy_package_files
from export.stored_names import match_names
from o2o.cli.text import counted
from o2o.errors import ModelError, O2oError
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.derived_checkpoint import FILE, write_index
from o2o.weights.derived_tensor import Expression, expression_of


def derive_text_part(model: Path, folder: Path) -> list[str]:
    """Make a derived checkpoint of a multimodal model's text part.

    Args:
        model: The checkpoint's folder.
        folder: An empty folder to fill.

    Returns:
        Lines for the user: what was left out.

    Raises:
        ModelError: The checkpoint is incomplete, or transformers cannot build the model.
        OSError: A file cannot be read or written.
    """
    from export.resources import format_bytes

    checkpoint = open_checkpoint(model)
    config = read_config(model)
    fields = text_config(config)
    try:
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
            whole = _whole_class(config)._from_config(config)
    except O2oError:
        raise
    except Exception as error:
        raise ModelError(
            f"transformers cannot build this {config.model_type} model{summarize_error(error)}"
        ) from error
    fields["tie_word_embeddings"] = bool(getattr(whole, "all_tied_weights_keys", None))
    names = match_names(whole, checkpoint.tensors)
    place, prefix = _text_place(whole, config), text.base_model_prefix
    parameters = text.state_dict()
    weights: dict[str, Expression] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    for name, stored in names.of_parameters.items():
        short = f"{prefix}.{name.removeprefix(f'{place}.')}" if name.startswith(f"{place}.") else name
        target = short if short in parameters else name.removeprefix(f"{place}.")
        if target in parameters:
            weights[target] = expression_of(checkpoint.tensors[stored])
        else:
            left_out[_module(name, prefix)].append(stored)
    for name, (stored, operations) in names.converted.items():
        if name.startswith(f"{place}."):
            raise ModelError(
                f"transformers computes {name} from {stored} ({operations}), which export does not"
            )
        left_out[_module(name, prefix)].append(stored)
    for stored in names.unexpected:
        left_out[_module(stored, prefix)].append(stored)
    AutoConfig.for_model(**fields).save_pretrained(folder)
    write_index(folder / FILE, weights)
    copy_package_files(folder, model, without=("config.json",))
    parts = [
        f"{module} ({counted(len(stored), 'tensor')}, "
        f"{format_bytes(sum(checkpoint.tensors[one].length for one in stored))})"
        for module, stored in sorted(left_out.items())
    ]
    line = f"{model.name}: took the text part ({fields['model_type']}) of this {config.model_type} model"
    return [f"{line}; left out {', '.join(parts)}" if parts else line]


def text_config(config: Any) -> dict[str, Any]:
    """Return the configuration of the text part.

    Args:
        config: transformers' configuration of the multimodal model.

    Returns:
        The fields of a `config.json`, also those that only the multimodal model has: ids of special tokens.

    Raises:
        ModelError: transformers has no causal language model for the text part.
    """
    text = config.get_text_config(decoder=True)
    fields: dict[str, Any] = text.to_dict()
    kind = TEXT_MODELS.get(text.model_type, text.model_type)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"transformers has no causal language model for the text part {text.model_type!r}")
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(parameters := fields.get(name), dict) and kind != text.model_type:
            plain = {key: value for key, value in parameters.items() if not key.startswith("mrope")}
            if plain.get("rope_type", plain.get("type")) == "mrope":
                plain["rope_type"] = "default"
                plain.pop("type", None)
            fields[name] = plain
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if token is not None and (not isinstance(token, int) or token < text.vocab_size):
            fields[name] = token  # SmolVLM's pad_token_id is outside of its vocabulary
    fields["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    return fields | {"model_type": kind}


def _whole_class(config: Any) -> Any:
    """transformers' class of the multimodal model."""
    for name in config.architectures or ():
        if (model_class := getattr(transformers, name, None)) is not None:
            return model_class
    return transformers.AutoModelForImageTextToText._model_mapping[type(config)]


def _text_place(whole: PreTrainedModel, config: Any) -> str:
    """The module of the text part in the multimodal model, such as `model.language_model`."""
    text = type(config.get_text_config(decoder=True))
    for name, module in whole.named_modules():
        if name and isinstance(module, PreTrainedModel) and isinstance(module.config, text):
            return name
    raise ModelError(f"{type(whole).__name__} of transformers has no text part of its own")


def _module(name: str, prefix: str) -> str:
    """The part of the model that a tensor belongs to, such as `vision_tower`."""
    return name.removeprefix(f"{prefix}.").partition(".")[0]
