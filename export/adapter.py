"""An adapter (LoRA) of PEFT, merged into its base model as a derived checkpoint.

W + s B A is computed by rows while weights are bound. s is alpha / r, or alpha / sqrt(r) for rsLoRA.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.pytorch_utils import Conv1D

from export.model import LanguageModel
from export.package_files import copy_package_files
from export.parameter_matching import match_parameters
from export.stored_names import match_names
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.weights import pytorch_file, safetensors
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.derived_checkpoint import FILE, write_index
from o2o.weights.derived_tensor import Expression, LowRank, Sum, Transposed, expression_of
from o2o.weights.weight_source import WeightSource

CONFIG = "adapter_config.json"
WEIGHTS = {
    "adapter_model.safetensors": safetensors.read_header,
    "adapter_model.bin": pytorch_file.read_header,
}

MERGED = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "modules_to_save", "lora_bias", "bias", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "lora_dropout", "task_type", "base_model_name_or_path",
    "inference_mode", "revision", "auto_mapping", "peft_version", "megatron_core", "runtime_config",
    "eva_config", "loftq_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "ensure_weight_tying",
}  # fmt: skip
"""The settings that merging regards, or that matter in training only. Others that are set are refused."""

CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` with which training changes the base model's weights, too."""

_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}


@dataclass
class _Update:
    """The tensors of one module, by what they are, and whether it is an embedding."""

    parts: dict[str, WeightSource] = field(default_factory=dict)
    is_embedding: bool = False


def merge_adapter(base: Path, adapter: Path, folder: Path) -> list[str]:
    """Make a derived checkpoint of a base model with an adapter.

    Args:
        base: The base model's folder.
        adapter: The adapter's folder.
        folder: An empty folder to fill.

    Returns:
        Lines for the user.

    Raises:
        ModelError: The adapter is damaged, does not fit the model, or is of a type that is not merged.
        OSError: A file cannot be read or written.
    """
    settings = _settings(adapter)
    updates, replaced = _sorted_tensors(adapter)
    model = LanguageModel.read(base)
    lines: list[str] = []
    matched = match_parameters(model, open_checkpoint(base), log=lines.append)
    weights = {name: expression_of(source) for name, source in matched.items()}
    if model.aliases:
        weights |= {alias: weights[name] for name, aliases in model.aliases.items() for alias in aliases}
    changed = set()
    for name, source in replaced.items():
        parameter = _parameter(name, model, adapter)
        _check_shape(adapter, name, source.shape, weights[parameter].shape)
        weights[parameter] = expression_of(source)
        changed.add(parameter)
    for module, update in updates.items():
        for name, expression in _merged(module, update, settings, model, weights, adapter).items():
            weights[name] = expression
            changed.add(name)
    tied = {alias for name, aliases in model.aliases.items() for alias in (name, *aliases)}
    untied = bool(tied & changed)
    if not untied:
        for aliases in model.aliases.values():
            for alias in aliases:
                del weights[alias]
    write_index(folder / FILE, weights)
    copy_package_files(folder, base)
    _write_config(folder, untied)
    if any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        copy_package_files(folder, adapter, without=("config.json", "generation_config.json"))
        lines.append(f"{adapter.name}: its tokenizer takes the place of the base model's")
    what = f"merged {counted(len(updates), 'module')}"
    what += f", replaced {counted(len(replaced), 'tensor')}" if replaced else ""
    what += "; input and output embeddings are no longer tied" if untied else ""
    return [*lines, f"{adapter.name}: {what}"]


def _settings(adapter: Path) -> Mapping[str, Any]:
    """The content of adapter_config.json, if its adapter can be merged."""
    try:
        settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        kind = settings.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{adapter} has no usable {CONFIG}: it is not an adapter of PEFT") from error
    if kind != "LORA":
        raise ModelError(f"{adapter} is of the type {kind}, which is not merged: only LORA is")
    for name, value in settings.items():
        if name not in MERGED and value:
            what = "DoRA" if name == "use_dora" else name
            raise ModelError(
                f"{adapter} uses {what}, which is not merged: merge it with PEFT's merge_and_unload"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_THE_BASE):
        raise ModelError(
            f"{adapter} was trained with init_lora_weights {start}, which changes the base model's weights: "
            "merge it with PEFT's merge_and_unload"
        )
    for name, value in _numbers(settings):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{adapter} has no usable {CONFIG}: {name} is {value!r}, not a number")
    return settings


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The ranks and alphas of an adapter, and what stands in place of a table or a regular expression."""
    yield from ((name, settings[name]) for name in ("r", "lora_alpha") if name in settings)
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(name) or {}
        if not isinstance(pattern, dict):
            yield name, pattern
            continue
        for module, value in pattern.items():
            try:
                re.compile(module)
            except re.error:
                yield f"the module of {name}", module
            yield f"{name} of {module}", value


def _sorted_tensors(adapter: Path) -> tuple[dict[str, _Update], dict[str, WeightSource]]:
    """The updates by module, and the tensors that replace others, by name."""
    file = next((adapter / name for name in WEIGHTS if (adapter / name).is_file()), None)
    if file is None:
        raise ModelError(f"{adapter} has no {' or '.join(WEIGHTS)}")
    updates: dict[str, _Update] = {}
    replaced: dict[str, WeightSource] = {}
    for full, source in WEIGHTS[file.name](file).items():
        name = full.removeprefix("base_model.model.").replace(".base_layer.", ".")
        name = re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
        if "lora_magnitude_vector" in name or "trainable_tokens" in name:
            kind = "DoRA" if "magnitude" in name else "trainable tokens"
            raise ModelError(f"{file} has {full} ({kind}), which is not merged")
        suffix = next((suffix for suffix in _PARTS if name.endswith(suffix)), None)
        if suffix is None:
            replaced[name] = source
            continue
        update = updates.setdefault(name.removesuffix(suffix), _Update())
        update.parts[_PARTS[suffix]] = source
        update.is_embedding = "embedding" in suffix
    return updates, replaced


def _merged(
    module: str,
    update: _Update,
    settings: Mapping[str, Any],
    model: LanguageModel,
    weights: Mapping[str, Expression],
    adapter: Path,
) -> dict[str, Expression]:
    """The parameters of a module with its update."""
    parameter = _parameter(f"{module}.weight", model, adapter)
    if not {"a", "b"} <= set(update.parts):
        raise ModelError(f"{adapter} has only one of lora_A and lora_B of {module}: it is damaged")
    a, b = (expression_of(update.parts[name]) for name in ("a", "b"))
    rank = int(_pattern(settings, "rank_pattern", module, settings.get("r", 8)))
    alpha = float(_pattern(settings, "alpha_pattern", module, settings.get("lora_alpha", 8)))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(
            f"{adapter} has lora_A {list(a.shape)} and lora_B {list(b.shape)} of {module}, but its rank is "
            f"{rank}"
        )
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    owner = model.module.get_submodule(parameter.removesuffix(".weight"))
    # A Linear has [out, in]; Conv1D and embeddings have the transposed matrix.
    if update.is_embedding or isinstance(owner, Conv1D):
        product = LowRank(Transposed(a), Transposed(b))
    else:
        product = LowRank(b, a)
    _check_shape(adapter, module, product.shape, weights[parameter].shape)
    merged: dict[str, Expression] = {parameter: Sum(weights[parameter], product, scale)}
    if (extra := update.parts.get("bias")) is not None:
        bias = f"{parameter.removesuffix('.weight')}.bias"
        if bias not in weights:
            raise ModelError(f"{adapter} has a bias for {module} (lora_bias), which has none in the model")
        _check_shape(adapter, f"{module} (lora_bias)", extra.shape, weights[bias].shape)
        merged[bias] = Sum(weights[bias], expression_of(extra), scale)
    return merged


def _pattern(settings: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """The value for a module; keys are regular expressions for the end of its name, as in PEFT."""
    patterns = settings.get(name) or {}
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _parameter(name: str, model: LanguageModel, adapter: Path) -> str:
    """The parameter that an adapter calls `name`: its names are those of a version of transformers."""
    # The text part of a multimodal model is `language_model` there.
    for candidate in (name, re.sub(r"(^|\.)language_model\.", r"\1", name)):
        if parameters := list(match_names(model.module, [candidate]).of_parameters):
            return parameters[0]
    raise ModelError(
        f"{adapter} changes {name}, which the model does not have: is it for another base model?"
    )


def _check_shape(adapter: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ModelError(
            f"{adapter} changes {name} of shape {list(shape)}, the model has {list(expected)}: it is for "
            "another base model"
        )


def _write_config(folder: Path, untied: bool) -> None:
    if not untied:
        return
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {"tie_word_embeddings": False}, indent=2), encoding="utf-8")
