"""The files of a checkpoint that a package contains besides its model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

FILES = (
    "config.json",
    "generation_config.json",
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""The files that decide which tokens a text has. Each is a name or a pattern."""


def copy_package_files(
    package: str | os.PathLike[str], checkpoint: str | os.PathLike[str], without: Collection[str] = ()
) -> None:
    """Copy the files of `FILES` that a checkpoint has. Each appears when it is complete.

    Args:
        package: The package's folder; created if it does not exist.
        checkpoint: The checkpoint's folder.
        without: Names of files to leave out.

    Raises:
        OSError: A file cannot be read or written.
    """
    folder, origin = Path(package), Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    for source in (path for pattern in FILES for path in sorted(origin.glob(pattern))):
        if source.name in without:
            continue
        target = folder / source.relative_to(origin)
        if source.resolve() != target.resolve():
            target.parent.mkdir(exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            os.replace(part, target)


def stale_package_files(package: str | os.PathLike[str], checkpoint: str | os.PathLike[str]) -> list[Path]:
    """List the files of `FILES` that a package has from another checkpoint.

    Args:
        package: The package's folder.
        checkpoint: The checkpoint that it is built from now.

    Returns:
        The files in the package that the checkpoint does not have.
    """
    folder, origin = Path(package), Path(checkpoint)
    there = (path for pattern in FILES for path in sorted(folder.glob(pattern)))
    return [path for path in there if not (origin / path.relative_to(folder)).exists()]
