"""Graphs exported through TICO, once for all tests: an export takes seconds, a test should not."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once

SHAPES = {"demo": DEMO, "grouped": GROUPED}


def checkpoint(root: Path, shape: str) -> Path:
    """The random checkpoint of that shape below `root`, made at the first call of any process."""
    directory = root / f"checkpoint-{shape}"
    with FileLock(root / f"{shape}.lock"):
        if not (directory / "config.json").exists():
            write_checkpoint(directory, **SHAPES[shape])
    return directory


def exported(root: Path, shape: str, form: str) -> Path:
    """A Circle file: `prefill` of 32 tokens, `prefill_4` (or another number) of as many onto caches of 32,
    or decode as `concat` on 30 rows or `static` on 32."""
    path = root / f"{shape}.{form}.circle"
    directory = checkpoint(root, shape)
    with FileLock(root / f"{shape}.{form}.lock"):
        if not path.exists():
            from export import build_graph
            from o2o import formats

            with compiled_once(root):
                if form == "prefill":
                    model = build_graph.prefill(directory)
                elif form.startswith("prefill_"):
                    model = build_graph.prefill(directory, int(form.removeprefix("prefill_")), capacity=32)
                else:
                    model = build_graph.decode(directory, 32 if form == "static" else 30, form)  # type: ignore[arg-type]
            formats.save(model, path)
    return path
