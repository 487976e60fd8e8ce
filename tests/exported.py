"""Graphs exported through TICO, once for all tests: an export takes seconds, a test should not."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from tests.checkpoints import DEMO, GROUPED, write_checkpoint

SHAPES = {"demo": DEMO, "grouped": GROUPED}


def checkpoint(root: Path, shape: str) -> Path:
    """The random checkpoint of that shape below `root`, made at the first call of any process."""
    directory = root / f"checkpoint-{shape}"
    with FileLock(root / f"{shape}.lock"):
        if not (directory / "config.json").exists():
            write_checkpoint(directory, **SHAPES[shape])
    return directory


def exported(root: Path, shape: str, form: str) -> Path:
    """`prefill` of 32 tokens, or decode as `concat` on 30 rows or `static` on 32, as a Circle file."""
    path = root / f"{shape}.{form}.circle"
    directory = checkpoint(root, shape)
    with FileLock(root / f"{shape}.{form}.lock"):
        if not path.exists():
            from export import build
            from o2o import formats

            if form == "prefill":
                model = build.prefill(directory)
            else:
                model = build.decode(directory, 32 if form == "static" else 30, form)  # type: ignore[arg-type]
            formats.save(model, path)
    return path
