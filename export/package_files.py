"""The files of a checkpoint that a package contains besides its model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from o2o.errors import UsageError
from o2o.weights.checkpoint_files import CONFIGS, TOKENIZER

FILES = (*CONFIGS, *TOKENIZER)
"""The files that decide which tokens a text has. Each is a name or a pattern."""
VOCABULARIES = {".json": "tokenizer.json", ".model": "tokenizer.model"}
"""The name of a single file that holds a tokenizer, by its suffix."""


def package_files(checkpoint: Path, tokenizer: Path | None = None) -> dict[Path, Path]:
    """List the files of a package besides its model.

    Args:
        checkpoint: The checkpoint's folder.
        tokenizer: A folder, or one file, that has the tokenizer in place of the checkpoint's own.

    Returns:
        {path in the package: file to copy}.

    Raises:
        UsageError: There is no tokenizer at that place.
    """
    if tokenizer is None:
        return _present(checkpoint, FILES)
    files = _present(checkpoint, CONFIGS)
    if tokenizer.is_file() and tokenizer.suffix in VOCABULARIES:
        return files | {Path(VOCABULARIES[tokenizer.suffix]): tokenizer}
    if not tokenizer.is_dir():
        wrong = (
            "no such file or folder" if not tokenizer.exists() else "give a folder, or a .json or .model file"
        )
        raise UsageError(f"--tokenizer {tokenizer}: {wrong}")
    if not (own := _present(tokenizer, TOKENIZER)):
        raise UsageError(f"--tokenizer {tokenizer}: this folder has no tokenizer.json and no tokenizer.model")
    return files | own


def _present(folder: Path, patterns: Collection[str]) -> dict[Path, Path]:
    return {path.relative_to(folder): path for pattern in patterns for path in sorted(folder.glob(pattern))}


def copy_package_files(
    package: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    without: Collection[str] = (),
    tokenizer: Path | None = None,
) -> None:
    """Copy the files of `package_files`. Each appears when it is complete.

    Args:
        package: The package's folder; created if it does not exist.
        checkpoint: The checkpoint's folder.
        without: Names of files to leave out.
        tokenizer: See `package_files`.

    Raises:
        UsageError: See `package_files`.
        OSError: A file cannot be read or written.
    """
    folder = Path(package)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in package_files(Path(checkpoint), tokenizer).items():
        target = folder / name
        if source.name not in without and source.resolve() != target.resolve():
            target.parent.mkdir(exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            os.replace(part, target)


def stale_package_files(
    package: str | os.PathLike[str], checkpoint: str | os.PathLike[str], tokenizer: Path | None = None
) -> list[Path]:
    """List the files of `FILES` that a package has from another checkpoint.

    Args:
        package: The package's folder.
        checkpoint: The checkpoint that it is built from now.
        tokenizer: See `package_files`.

    Returns:
        The files in the package that the checkpoint does not have.
    """
    current = package_files(Path(checkpoint), tokenizer)
    return [path for name, path in _present(Path(package), FILES).items() if name not in current]
