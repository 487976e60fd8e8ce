"""Preparation of a model for ONNX Runtime: lowering to ONNX, from the disk cache for a large model.

ONNX Runtime packs weights as XNNPACK does. So a large model is lowered and packed once, into files that each
later load maps into memory (`runtime_py.engines.prepared_artifacts`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from o2o.streams.temporary import temporary_folder
from runtime_py.child_process import run_module
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx.lowered_file import FORM, MODEL, lower_file
from runtime_py.engines.onnx.num_logits import select_logits
from runtime_py.engines.options import EngineOptions

_MAX_GROWTH = 2.5
"""Upper limit of packed bytes relative to the model: ONNX Runtime also keeps float32 weights unpacked."""


@dataclass(frozen=True)
class PreparedModel:
    """What ONNX Runtime loads.

    Attributes:
        model: The file that was prepared.
        file: An ONNX file made from it, or the file itself.
        content: What to load in place of `file`, with the external data of `file`; None for `file`.
    """

    model: ModelFile
    file: Path
    content: bytes | None = None


@contextlib.contextmanager
def prepare(model: ModelFile, options: EngineOptions) -> Iterator[PreparedModel]:
    """Lower a Circle file to ONNX, and pack its weights into the disk cache if it is large.

    Args:
        model: A Circle file, or an ONNX file, which is used unchanged but for an input `num_logits`.
        options: `all_logits`, `speculate`, `disk_cache` and `log` are used.

    Yields:
        The prepared model, which may be loaded within the block.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: The file cannot be read. Errors of the disk cache are logged.
    """
    if model.path.suffix == ".onnx":
        selects = options.all_logits or options.speculate
        yield PreparedModel(model, model.path, select_logits(model.path) if selects else None)
    elif (entry := _from_cache(model, options)) is not None:
        yield PreparedModel(model, entry / MODEL)
    else:
        with temporary_folder(prefix="o2o-onnx-") as folder:
            file = folder / MODEL
            lower_file(model, file)
            yield PreparedModel(model, file)


def _from_cache(model: ModelFile, options: EngineOptions) -> Path | None:
    """The folder of the packed model; None if it cannot be stored."""
    if options.disk_cache is None or model.size < prepared_artifacts.MIN_BYTES:
        return None
    return prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        "onnx",
        variant=[importlib.metadata.version("onnxruntime"), FORM],
        estimate_size=lambda: int(model.size * _MAX_GROWTH),
        build=lambda entry: pack_in_child(model.path, entry),
        log=options.log,
    )


def pack_in_child(file: Path, entry: Path) -> None:
    """Run `runtime_py.engines.onnx.pack` as a child process.

    Args:
        file: A Circle file.
        entry: The folder to write the packed model to.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: The child failed.
    """
    run_module("runtime_py.engines.onnx.pack", file, entry)
