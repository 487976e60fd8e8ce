"""Preparation of a model for ONNX Runtime: lowering to ONNX and packing of weights, both stored.

ONNX Runtime optimizes graphs and packs weights as XNNPACK does. A model where this takes long is lowered and
packed once, into files that each later load maps into memory (`runtime_py.engines.prepared_artifacts`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.streams.temporary import temporary_folder
from runtime_py.child_process import run_module
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx.draft_verifiers import make_draft_verifier
from runtime_py.engines.onnx.lowered_file import FORM, MODEL, lower_file
from runtime_py.engines.onnx.num_logits import select_logits
from runtime_py.engines.onnx.pack import pack, verifier_file
from runtime_py.engines.options import EngineOptions

if TYPE_CHECKING:
    import onnx

_MAX_GROWTH = 2.5
"""Upper limit of packed bytes relative to the model: ONNX Runtime also keeps float32 weights unpacked."""


@dataclass(frozen=True)
class PreparedModel:
    """What ONNX Runtime loads.

    Attributes:
        model: The file that was prepared.
        file: An ONNX file made from it, or the file itself.
        content: What to load in place of `file`, with the external data of `file`; None for `file`.
        verifier: Returns the graph that verifies drafts of T tokens, with the same external data; None where
            drafts cannot be verified exactly without a second copy of the weights.
    """

    model: ModelFile
    file: Path
    content: bytes | None = None
    verifier: Callable[[int], bytes | Path] | None = None


@contextlib.contextmanager
def prepare(model: ModelFile, options: EngineOptions) -> Iterator[PreparedModel]:
    """Lower a Circle file to ONNX. Pack the weights into the disk cache if this takes long.

    Args:
        model: A Circle file, or an ONNX file, which gets an input `num_logits`.
        options: `all_logits`, `speculate`, `disk_cache` and `log` are used.

    Yields:
        The prepared model, which may be loaded within the block.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: The file cannot be read. Errors of the disk cache are logged.
    """
    if model.size >= prepared_artifacts.MIN_BYTES:
        entry = _from_cache(
            model, options, lambda entry: pack_in_child(model.path, entry, options.speculate), options.log
        )
        if entry is not None:
            yield PreparedModel(model, entry / MODEL, None, partial(verifier_file, entry))
            return
    if model.path.suffix == ".onnx":
        selects = options.all_logits or options.speculate
        content = select_logits(model.path) if selects else None
        yield PreparedModel(model, model.path, content, partial(_make_verifier, content or model.path))
        return
    with temporary_folder(prefix="o2o-onnx-") as folder:
        file = folder / MODEL
        seconds = 0.0

        def is_slow() -> bool:
            nonlocal seconds
            begin = time.perf_counter()
            lower_file(model, file, options.speculate)
            seconds = time.perf_counter() - begin
            return seconds >= prepared_artifacts.MIN_SECONDS

        entry = None
        if model.size < prepared_artifacts.MIN_BYTES:
            build = lambda entry: pack(file, entry / MODEL)  # noqa: E731
            entry = _from_cache(model, options, build, lambda line: None, is_slow)
        if entry is None and not file.exists():
            lower_file(model, file, options.speculate)
        if entry is not None:
            yield PreparedModel(model, entry / MODEL, None, partial(verifier_file, entry))
            return
        small = options.speculate and model.size < prepared_artifacts.MIN_BYTES
        yield PreparedModel(model, file, None, partial(make_draft_verifier, _read(file)) if small else None)


def _make_verifier(model: bytes | Path, length: int) -> bytes:
    """The graph that verifies drafts, made from a model with external data or from its bytes."""
    import onnx

    if isinstance(model, bytes):
        return make_draft_verifier(onnx.load_from_string(model), length)
    return make_draft_verifier(onnx.load(model, load_external_data=False), length)


def _read(file: Path) -> onnx.ModelProto:
    """A model with its external data inside: its files will be removed."""
    import onnx

    return onnx.load(file)


def _from_cache(
    model: ModelFile,
    options: EngineOptions,
    build: Callable[[Path], None],
    log: Callable[[str], None],
    worth_keeping: Callable[[], bool] = lambda: True,
) -> Path | None:
    """The folder of the packed model; None if it is not stored."""
    if options.disk_cache is None:
        return None
    return prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        "onnx",
        variant=[prepared_artifacts.installed_version("onnxruntime"), FORM, options.speculate],
        estimate_size=lambda: int(model.size * _MAX_GROWTH),
        build=build,
        log=log,
        worth_keeping=worth_keeping,
    )


def pack_in_child(file: Path, entry: Path, row_exact: bool = False) -> None:
    """Run `runtime_py.engines.onnx.pack` as a child process.

    Args:
        file: A Circle or ONNX file.
        entry: The folder to write the packed model to.
        row_exact: See `lower_file`.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: The child failed.
    """
    run_module("runtime_py.engines.onnx.pack", file, entry, *["row_exact"] * row_exact)
