"""What has been quantised, as JSON in the file: an entry each time.

    {"version": 1, "steps": [{
        "recipe": "dynamic_int8", "matrices": "int8", "embedding": "int8", "head": "int8",
        "tensors": {"int8": 156}, "bytes": [4400193536, 1105577984]}]}

`bytes` are those of the model's matrices, before and after, with their scales.
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


def record(model: Model, recipe: Recipe, schemes: Sequence[str], sizes: Sequence[int]) -> None:
    """Say in the model's metadata what was done, behind what was done before; nothing for no tensors.

    schemes: of each tensor that was quantised. sizes: bytes before and after.
    """
    if not schemes:
        return
    step = {**recipe.told(), "tensors": dict(sorted(Counter(schemes).items())), "bytes": list(sizes)}
    told = {"version": VERSION, "steps": [*recorded(model), step]}
    model.metadata = [entry for entry in model.metadata if entry[0] != METADATA_NAME]
    model.metadata.append((METADATA_NAME, json.dumps(told, separators=(",", ":")).encode()))


def recorded(model: Model) -> list[dict[str, Any]]:
    """Return the steps that `record` has written, the oldest first; none where they are damaged.

    Raises:
        ModelError: They have a newer version than this module knows.
    """
    try:
        data = dict(model.metadata).get(METADATA_NAME, b"{}")
        return list(metadata.parse(METADATA_NAME, data, VERSION)["steps"])
    except metadata.NewerVersion:
        raise
    except (ModelError, KeyError, TypeError):
        return []
