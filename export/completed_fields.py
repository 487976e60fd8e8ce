"""Fields of a configuration that only transformers' source says, such as which layers have a window.

Gemma 2's own config.json has a window and no list of layers: every second layer has the window. The
configuration class computes that list when an instance is made. Its statements run here, without an import
of transformers.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from export.architectures import declaration

_NAMES = ("bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min", "range")
_BUILTINS = {name: getattr(builtins, name) for name in (*_NAMES, "set", "sorted", "str", "sum", "zip")}


def completed_fields(model_type: str, fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Compute the fields that transformers' configuration would have.

    Args:
        model_type: The `model_type` of config.json.
        fields: The fields of config.json and the defaults of transformers.
        layers: Number of transformer layers.

    Returns:
        The fields, completed. Statements that need more than fields are left out.
    """
    given = copy.deepcopy(dict(fields))
    config = SimpleNamespace(**{"layer_types": None, **given, "num_hidden_layers": layers})
    names = {"__builtins__": _BUILTINS, "self": config, "kwargs": given}
    for statement in declaration(model_type).post_init:
        with contextlib.suppress(Exception):
            exec(compile(ast.Module([statement], []), "<transformers>", "exec"), names)
    return vars(config)
