"""Preparation of a model for ONNX Runtime: lowering to ONNX and packing of weights, both stored.

ONNX Runtime optimizes graphs and packs weights as XNNPACK does. A model where this takes long is lowered and
packed once, into files that each later load maps into memory (`runtime_py.engines.prepared_artifacts`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
        options: `all_logits`, `speculate`, `rounded_drafts`, `disk_cache` and `log` are used.

    Yields:
        The prepared model, which may be loaded within the block.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: The file cannot be read. Errors of the disk cache are logged.
    """
    is_large, is_onnx = model.size >= prepared_artifacts.MIN_BYTES, model.path.suffix == ".onnx"
    with contextlib.ExitStack() as stack:

        @functools.cache
        def plain() -> _PlainModel:
            begin = time.perf_counter()
            content = None
            if not is_onnx:
                file = stack.enter_context(temporary_folder(prefix="o2o-onnx-")) / MODEL
                lower_file(model, file, options.rounded_drafts)
            else:
                file = model.path
                content = select_logits(file) if options.all_logits or options.speculate else None
            return _PlainModel(file, content, time.perf_counter() - begin)

        def build(entry: Path) -> None:
            if is_large:
                pack_in_child(model.path, entry, options.rounded_drafts)
            else:
                pack(plain().content or plain().file, entry / MODEL, model.path.parent if is_onnx else None)

        entry = _from_cache(
            model,
            options,
            build,
            options.log if is_large else lambda line: None,
            lambda: is_large or plain().seconds >= prepared_artifacts.MIN_SECONDS,
        )
        if entry is not None:
            yield PreparedModel(model, entry / MODEL, None, partial(verifier_file, entry))
            return
        file, content, _ = plain()
        if is_onnx:
            yield PreparedModel(model, file, content, partial(_make_verifier, content or file))
            return
        small = options.speculate and not is_large
        yield PreparedModel(model, file, None, partial(make_draft_verifier, _read(file)) if small else None)


class _PlainModel(NamedTuple):
    """A model that is not packed: its file, what to load in place of it, and the seconds to make it."""

    file: Path
    content: bytes | None
    seconds: float


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
    worth_keeping: Callable[[], bool],
) -> Path | None:
    """The folder of the packed model; None if it is not stored."""
    if options.disk_cache is None:
        return None
    return prepared_artifacts.find_or_build(
        model,
        options.disk_cache,
        "onnx" if options.speculate else "onnx without drafts",  # its weights have other blocks
        variant=[prepared_artifacts.installed_version("onnxruntime"), FORM],
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
