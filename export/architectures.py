"""The architectures that the installed transformers can build, read from its source without importing it.

Importing transformers imports torch and takes seconds. A model that it does not know is refused before that.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from export.config import CheckpointConfig
from export.loading_flags import is_trusted, needs_code_error
from o2o.cli.arguments import suggestion
from o2o.errors import ModelError

SOURCE = "models/auto/modeling_auto.py"
TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def check_architecture(config: CheckpointConfig, directory: Path) -> None:
    """Refuse a model that transformers cannot build as a language model.

    Args:
        config: The checkpoint's configuration.
        directory: The checkpoint's folder, for the message.

    Raises:
        ModelError: transformers has no causal language model of this `model_type`.
    """
    known = causal_models()
    if known and config.model_type not in known:
        if config.needs_code:
            if is_trusted():
                return
            raise needs_code_error(config.model_type, directory)
        raise ModelError(
            f"{directory}: the installed transformers has no causal language model of type "
            f"{config.model_type!r}{suggestion(config.model_type, known)}"
        )


@functools.cache
def causal_models() -> frozenset[str]:
    """List the model types of causal language models.

    Returns:
        The values of `model_type`; empty if the table cannot be read.
    """
    spec = importlib.util.find_spec("transformers")
    folders = (spec.submodule_search_locations or []) if spec else []
    for file in (Path(folder) / SOURCE for folder in folders):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == TABLE for target in targets):
                    return frozenset(_keys(node.value))
    return frozenset()


def _keys(table: ast.expr) -> set[str]:
    """The first elements of all pairs of constants in an expression."""
    keys = set()
    for pair in ast.walk(table):
        if isinstance(pair, ast.Tuple) and pair.elts and isinstance(pair.elts[0], ast.Constant):
            keys.add(str(pair.elts[0].value))
    return keys
