"""The files of a checkpoint that a package carries beside its model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def fill(package: str | os.PathLike[str], checkpoint: str | os.PathLike[str]) -> None:
    """Copy those of `FILES` that `checkpoint` has into the folder `package`, which is made if need be.

    Each file appears when it is complete. Raises OSError.
    """
    folder = Path(package)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source = Path(checkpoint) / name
        if source.exists():
            part = folder / f".{name}.part"
            shutil.copyfile(source, part)
            os.replace(part, folder / name)
