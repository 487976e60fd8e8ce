"""What an engine lacks for a model: the model is lowered for it, as the runtime does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from o2o.errors import ModelError
from o2o.formats.litert_ops import MINIMUM_VERSIONS, is_registered
from o2o.lower.litert import lower_to_litert
from o2o.lower.onert import lower_to_onert
from o2o.lower.onnx import lower_to_onnx
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.verifier.issue import Issue, Places


def litert(model: Model) -> Iterator[Issue]:
    """Check for LiteRT: as it is for TFLite, lowered for Circle.

    Args:
        model: The model, which is changed.

    Yields:
        Issues V301 and V302.
    """
    if model.format == "circle":
        issues = [*_lowered(model, "V301", lower_to_litert)]
        yield from issues
        if issues:
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


def onert(model: Model) -> Iterator[Issue]:
    """Check for onert, legalized.

    Args:
        model: The model, which is changed.

    Yields:
        Issues V311: the first reason.
    """
    yield from _lowered(model, "V311", lower_to_onert)


def onnx(model: Model) -> Iterator[Issue]:
    """Check for an ONNX form.

    Args:
        model: The model, which is changed.

    Yields:
        Issues V321: the first reason.
    """
    yield from _lowered(model, "V321", lower_to_onnx)


def _lowered(model: Model, code: str, lower: Callable[[Model], object]) -> Iterator[Issue]:
    try:
        lower(model)
    except ModelError as error:
        yield Issue(code, str(error))


ENGINES: dict[str, Callable[[Model], Iterator[Issue]]] = {"litert": litert, "onert": onert, "onnx": onnx}
"""The engines of `--engine`."""
