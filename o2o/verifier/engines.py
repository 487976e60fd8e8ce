"""What an engine lacks for a model. It is lowered for the engine, as the runtime does, or loaded by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from o2o import formats
from o2o.check.engine_process import ENGINE, EngineFailure
from o2o.errors import ModelError
from o2o.formats.litert_ops import MINIMUM_VERSIONS, is_registered
from o2o.lower.litert import lower_to_litert
from o2o.lower.onert import lower_to_onert
from o2o.lower.onnx import lower_to_onnx
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.raising import as_circle
from o2o.streams import Source
from o2o.streams.temporary import temporary_folder
from o2o.verifier.issue import Issue, Places


def litert(model: Model, source: Source) -> Iterator[Issue]:
    """Check for LiteRT: as it is for TFLite, lowered for Circle, raised and lowered for ONNX.

    Args:
        model: The model, which is changed.
        source: Its file.

    Yields:
        Issues V301 and V302.
    """
    if model.format != "tflite":
        try:
            model = as_circle(model)
            lower_to_litert(model)
        except ModelError as error:
            yield Issue("V301", str(error))
            return
    for graph in model.graphs:
        places = Places(model, graph)
        for node in graph:
            needed = MINIMUM_VERSIONS.get(node.op_type, 1)
            if node.domain == CUSTOM_DOMAIN:
                yield places.at("V301", node, "LiteRT has no such custom operator")
            elif not is_registered(node.op_type):
                yield places.at("V301", node, "LiteRT has no such operator")
            elif (node.version or 1) < needed:
                yield places.at("V302", node, f"version {node.version or 1}, and LiteRT has {needed} on")


def onert(model: Model, source: Source) -> Iterator[Issue]:
    """Check for onert, legalized. ONNX is raised first.

    Args:
        model: The model, which is changed.
        source: Its file.

    Yields:
        Issues V311: the first reason.
    """
    try:
        lower_to_onert(as_circle(model))
    except ModelError as error:
        yield Issue("V311", str(error))


def onnx(model: Model, source: Source) -> Iterator[Issue]:
    """Check for ONNX Runtime: Circle and TFLite for an ONNX form; ONNX is loaded.

    Args:
        model: The model, which is changed.
        source: Its file.

    Yields:
        Issues V321: the first reason. V332: what ONNX Runtime says.
    """
    try:
        if model.format == "onnx":
            _load(model, source)
        else:
            lower_to_onnx(model)
    except ModelError as error:
        yield Issue("V321", str(error))
    except EngineFailure as failure:
        yield Issue("V332", " ".join(str(failure).split()))


def _load(model: Model, source: Source) -> None:
    """Load the file on ONNX Runtime, in another process. Raises EngineFailure.

    A model that is no file, as one on stdin, is written to a temporary one.
    """
    path = Path(source.name)
    with temporary_folder() if source.folder is None or not path.is_file() else nullcontext() as folder:
        if folder is not None:
            path = folder / "model.onnx"
            formats.save(model, path)
        key = ENGINE.new_key()
        ENGINE.request("load_onnx", key, str(path.absolute()))
        ENGINE.request("release", key)


ENGINES: dict[str, Callable[[Model, Source], Iterator[Issue]]] = {
    "litert": litert,
    "onert": onert,
    "onnx": onnx,
}
"""The engines of `--engine`."""
