"""Names of stored tensors as the modules of a model call them, by transformers' own conversion rules."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True)
class StoredNames:
    """The stored tensors of a checkpoint, by the names of a model.

    Attributes:
        of_parameters: {parameter: stored name}. A tied parameter may have an entry for each of its names.
        ignored: Tensors that transformers skips without a word, such as masks that the model computes.
        unexpected: Other tensors that no parameter takes.
        converted: {parameter: (stored name, operations)} that transformers splits, joins or transposes.
    """

    of_parameters: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    converted: dict[str, tuple[str, str]] = field(default_factory=dict)


def match_names(model: Any, stored: Iterable[str]) -> StoredNames:
    """Find the parameter of each stored tensor, as `from_pretrained` of transformers does.

    The rules are those of transformers: renamed modules, the prefix of the base model, ignored names.

    Args:
        model: A model of transformers; it may be on the meta device.
        stored: The names in the checkpoint.

    Returns:
        The names.
    """
    rules = copy.deepcopy(get_model_conversion_mapping(model))  # they are stateful
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    parameters, prefix = model.state_dict(), model.base_model_prefix
    ignored = _ignored(model)
    names = StoredNames()
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, pattern = name, None
        if target in parameters and pattern is not None:
            rule = next(rule for rule in converters if pattern in rule.source_patterns)
            operations = ", ".join(type(operation).__name__ for operation in rule.operations)
            names.converted[target] = name, operations
        elif target in parameters and target not in names.of_parameters:
            names.of_parameters[target] = name
        elif ignored is not None and ignored.search(target):
            names.ignored.append(name)
        else:
            names.unexpected.append(name)
    return names


def _ignored(model: Any) -> re.Pattern[str] | None:
    """The names that transformers ignores, as `_adjust_missing_and_unexpected_keys` of the model does."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return re.compile("|".join(f"({pattern})" for pattern in sorted(patterns))) if patterns else None
