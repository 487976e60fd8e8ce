"""Models that transformers does not have, each one readable file named after its `model_type`.

They follow the protocol of models of one's own (`export.authoring`).
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def built_in(model_type: object) -> Path | None:
    """Return the file of a model that this package defines.

    Args:
        model_type: The `model_type` of a config.json.

    Returns:
        The file; None for other models.
    """
    file = _FOLDER / f"{model_type}.py"
    is_model = isinstance(model_type, str) and model_type.isidentifier() and not model_type.startswith("_")
    return file if is_model and file.is_file() else None
