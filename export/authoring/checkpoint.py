"""The derived checkpoint of a model of one's own: its configuration, and its weights by their own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from export.authoring.model_file import PER_LAYER, SIZES, load
from export.authoring.tensor_names import apply
from export.config import SOURCE
from export.package_files import copy_package_files
from o2o.cli.text import counted, listed
from o2o.errors import ModelError
from o2o.weights.derived_checkpoint import FILE, write_index

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
PREFIX = "model."  # of the model within `AuthoredModel`


def derive_authored(model: Path, model_file: Path, model_type: str, folder: Path, strict: bool) -> list[str]:
    """Make a derived checkpoint.

    Args:
        model: The checkpoint's folder, which need not have a config.json, or one file of weights.
        model_file: The Python file that defines the model.
        model_type: The model type of the derived checkpoint.
        folder: An empty folder to fill.
        strict: Refuse tensors without a parameter.

    Returns:
        Lines for the user: what was left out.

    Raises:
        ModelError: The model file fails, or the checkpoint does not fit it.
        OSError: A file cannot be read or written.
    """
    source = load(model_file)
    fields, stored = source.read_checkpoint(model)
    config = source.config(fields)
    with torch.device("meta"):
        built = source.build(config)
    parameters: dict[str, tuple[int, ...]] = {}
    aliases: dict[str, list[str]] = {}
    names: dict[int, str] = {}
    for name, tensor in built.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            parameters[name] = tuple(tensor.shape)
        else:
            aliases.setdefault(first, []).append(name)
    try:
        weights, surplus = apply(source.tensor_names(config), parameters, aliases, stored)
    except ModelError as error:
        raise ModelError(f"{model}, {model_file.name}: {error}") from error
    derived = {**_sizes(config), "model_type": model_type, "architectures": ["AuthoredForCausalLM"]}
    derived |= {SOURCE: fields} | {name: fields[name] for name in TOKEN_IDS if name in fields}
    derived["tie_word_embeddings"] = bool(aliases)
    (folder / "config.json").write_text(json.dumps(derived), encoding="utf-8")
    write_index(folder / FILE, {PREFIX + name: expression for name, expression in weights.items()})
    if model.is_dir():
        copy_package_files(folder, model, without=("config.json",))
    if not surplus:
        return []
    what = f"{counted(len(surplus), 'tensor')} without a parameter: {listed(surplus, 4)}"
    if strict:
        raise ModelError(f"{model} has {what} (--strict)")
    return [f"{model.name}: skipped {what} (--strict refuses them)"]


def _sizes(config: Any) -> dict[str, Any]:
    """The sizes that plans and estimates read. A list has one for each layer.

    Not a window: transformers' cache would leave out the keys before it, of all layers. The model's own
    attention hides them.
    """
    return {name: getattr(config, name, None) for name in (*SIZES, *PER_LAYER, "intermediate_size")}
