"""The files of a checkpoint that a package contains besides its model."""

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


def copy_package_files(package: str | os.PathLike[str], checkpoint: str | os.PathLike[str]) -> None:
    """Copy the files of `FILES` that a checkpoint has. Each appears when it is complete.

    Args:
        package: The package's folder; created if it does not exist.
        checkpoint: The checkpoint's folder.

    Raises:
        OSError: A file cannot be read or written.
    """
    folder = Path(package)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source = Path(checkpoint) / name
        if source.exists() and source.resolve() != (folder / name).resolve():
            part = folder / f".{name}.part"
            shutil.copyfile(source, part)
            os.replace(part, folder / name)
