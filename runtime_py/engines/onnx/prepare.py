"""A package's model as ONNX Runtime takes it: Circle is lowered to ONNX, a big one once and for all.

ONNX Runtime wants weights in an order of its own, as XNNPACK does. So a big model is lowered and packed once,
into files that every later load maps (`runtime_py.engines.artifact_cache`).
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from o2o.errors import ModelError
from runtime_py.engines import artifact_cache
from runtime_py.engines.disk_cache import Cache

FORM = "ort"
_MODEL, _PLAIN = "model.onnx", "plain.onnx"
_UNFIT = 3  # the exit code for a model that cannot be ONNX
_PACKED = 2.5
"""At most so many times the bytes of a model does it take as it is packed: ONNX Runtime keeps floats in their
old order, too."""


@contextmanager
def translated(file: Path, cache: Cache | None, say: Callable[[str], None]) -> Iterator[Path]:
    """The ONNX model of the Circle model in `file`, or in an ONNX file itself, which may be loaded in this
    block; out of `cache` when it is big.

    say: is told, in a line, what takes long or cannot be kept. Raises ModelError, OSError of `file` only.
    """
    if file.suffix == ".onnx":
        yield file
        return
    big = file.stat().st_size >= artifact_cache.WORTH_KEEPING
    if big and cache is not None and (entry := _kept(file, cache, say)) is not None:
        yield entry / _MODEL
        return
    with tempfile.TemporaryDirectory(prefix="o2o-onnx-") as folder:
        lower(file, Path(folder) / _MODEL)
        yield Path(folder) / _MODEL


def lower(file: Path, onnx: Path) -> None:
    """Write the Circle model in `file` as ONNX Runtime likes it best to `onnx`, large weights beside it.
    Raises ModelError, OSError."""
    from o2o.formats import load
    from o2o.lower.onnx import lower_to_onnx, write

    try:
        write(lower_to_onnx(load(file), FORM), onnx)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _kept(file: Path, cache: Cache, say: Callable[[str], None]) -> Path | None:
    """The folder in `cache` of the model in `file`; None where that cannot be."""

    def size() -> int:
        return int(file.stat().st_size * _PACKED)

    def make(entry: Path) -> None:
        _pack(file, entry)

    how = [importlib.metadata.version("onnxruntime"), FORM]
    return artifact_cache.keep(file, cache, "onnx", how, size, make, say)


def _pack(file: Path, entry: Path) -> None:
    """Fill `entry`, in a process of its own, whose memory is given back. Raises OSError, ModelError."""
    artifact_cache.run(__spec__.name, file, entry)


def _main(file: Path, entry: Path) -> int:
    from runtime_py.engines.onnx.engine import pack

    plain = entry / _PLAIN
    try:
        lower(file, plain)
    except ModelError as error:
        print(error, file=sys.stderr)
        return _UNFIT
    try:
        pack(plain, entry / _MODEL)
    except ModelError as error:  # also for a full disk
        sys.exit(str(error))
    for path in entry.glob(f"{_PLAIN}*"):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(_main(*map(Path, sys.argv[1:])))
