"""The record of quantization in the file: JSON metadata with one step for each run of quantize.weights.py.

    {"version": 1, "steps": [{
        "recipe": "dynamic_int8", "matrices": "int8", "embedding": "int8", "head": "int8",
        "tensors": {"int8": 156}, "bytes": [4400193536, 1105577984]}]}

`tensors` counts the quantized matrices by scheme. `bytes` is the size of all matrices before and after, with
scales.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from o2o import metadata
from o2o.errors import ModelError
from o2o.model import Model
from o2o.quantization.recipes import Recipe

METADATA_NAME = "o2o.quantization"
VERSION = 1


def record_step(model: Model, recipe: Recipe, schemes: Sequence[str], sizes: Sequence[int]) -> None:
    """Append a step to the model's metadata, unless no matrix was quantized.

    Args:
        model: The model, changed in place.
        recipe: The recipe.
        schemes: The scheme of each quantized matrix.
        sizes: The bytes of all matrices before and after.
    """
    if not schemes:
        return
    step = {**recipe.as_json(), "tensors": dict(sorted(Counter(schemes).items())), "bytes": list(sizes)}
    record = {"version": VERSION, "steps": [*recorded_steps(model), step]}
    model.metadata = [entry for entry in model.metadata if entry[0] != METADATA_NAME]
    model.metadata.append((METADATA_NAME, json.dumps(record, separators=(",", ":")).encode()))


def recorded_steps(model: Model) -> list[dict[str, Any]]:
    """Return the quantization steps of a model.

    Args:
        model: The model.

    Returns:
        The steps, the oldest first; empty if there are none or the metadata is damaged.
    """
    try:
        data = dict(model.metadata).get(METADATA_NAME, b"{}")
        return list(metadata.parse(METADATA_NAME, data, VERSION)["steps"])
    except metadata.NewerVersion:
        raise
    except (ModelError, KeyError, TypeError):
        return []
