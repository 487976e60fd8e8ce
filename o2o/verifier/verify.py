"""All rules of the verifier, in the order of their codes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from o2o import formats
from o2o.errors import ModelError
from o2o.model import Model
from o2o.streams import Source
from o2o.verifier.engines import ENGINES
from o2o.verifier.graphs import verify_external_data, verify_graph, verify_signatures
from o2o.verifier.issue import Issue
from o2o.verifier.onnx_checker import checker_issues
from o2o.verifier.operators import verify_operators
from o2o.verifier.roles import verify_roles
from o2o.verifier.tables import stale_contract, verify_tables
from o2o.verifier.tico import tico_issues

_METADATA = "its metadata o2o.", "its o2o."  # how messages of `o2o.metadata` begin


def verify(source: Source, engines: Sequence[str] = (), tico: bool = False) -> list[Issue]:
    """Check a file.

    Args:
        source: A Circle, TFLite or ONNX file.
        engines: Keys of `ENGINES`: report what these lack, too.
        tico: Ask TICO's verifier, too.

    Returns:
        All issues. A file that cannot be read as a model has issues of its tables alone.

    Raises:
        ModelError: It cannot be read, and its tables do not show why: it is truncated, or no model.
    """
    try:
        model = formats.read(source)
    except ModelError as error:
        issues = _issues_of_tables(source, error)
        if not issues:
            raise
        return issues
    issues = [*_issues_of_model(source, model)]
    # ONNX's checker refuses ONNX Runtime's own operators in the domain of ONNX.
    if model.format == "onnx" or not any(issue.severity == "error" for issue in issues):
        for engine in engines:
            issues += ENGINES[engine](formats.read(source), source)
    if tico:
        issues += tico_issues(source, model.format)
    return issues


def _issues_of_tables(source: Source, error: ModelError) -> list[Issue]:
    """Why a file cannot be read, by its tables."""
    message = str(error).removeprefix(f"{source.name}: ")
    if message.startswith(_METADATA):
        return [Issue("V011", message)]
    if "truncated:" in message:
        return []
    try:
        return list(verify_tables(source))
    except (ModelError, struct.error, IndexError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _issues_of_model(source: Source, model: Model) -> Iterator[Issue]:
    if model.format == "onnx":
        yield from checker_issues(model)
    else:
        yield from verify_tables(source)
    for graph in model.all_graphs():
        yield from verify_graph(model, graph)
        if model.format != "onnx":
            yield from verify_operators(model, graph)
    yield from verify_external_data(model)
    yield from verify_signatures(model)
    yield from verify_roles(model)
    yield from stale_contract(source, model)
