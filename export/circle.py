"""torch.export -> TICO -> Circle: a traced graph as an `o2o` model, its ends named and their roles told."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
from collections.abc import Iterator

import tico
import torch

from export.fx_passes import drop_empty, quick_passes
from export.graphs import Graph
from export.model import summarize_error
from export.tensor_names import rename
from o2o.errors import ModelError, O2oError
from o2o.formats import loads
from o2o.model import Model, Signature


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's cyclic garbage collector, which takes a tenth of the time to find 20 MB of 450."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@quick_passes()
@_collector_paused()
def compile_graph(graph: Graph) -> bytes:
    """The Circle file of `graph`: its inputs, then one input for each parameter of the model.

    Raises ModelError when torch.export cannot trace the architecture or TICO lacks an operator of it.
    """
    kind = graph.model.kind
    try:
        with torch.no_grad():
            program = torch.export.export(graph.eval(), graph.example(), strict=False)
    except O2oError:
        raise
    except Exception as error:
        what = summarize_error(error)
        raise ModelError(
            f"torch.export cannot trace {graph.signature} of this {kind} model: {what}"
        ) from error
    drop_empty(program.graph)
    # Each input would be checked against these in a run that never comes; to write that takes inputs squared.
    program.example_inputs = None
    config = tico.get_default_config()
    config.set("circle_optimize", False)  # its clean-up after serialising is quadratic; filters do that here
    with _complaints("tico.utils.convert") as complaints:
        try:
            return tico.convert_from_exported_program(program, config=config).circle_binary
        except Exception as error:
            lacking = sorted({name for text in complaints for name in re.findall(r"\(op\) (\S+)", text)})
            what = f"it lacks {', '.join(lacking)}" if lacking else summarize_error(error)
            raise ModelError(f"TICO cannot convert {graph.signature} of this {kind} model: {what}") from error


def convert(graph: Graph) -> Model:
    """`graph` as a Circle model of one signature, whose last inputs are the parameters under their own names.

    Raises ModelError like `compile_graph`.
    """
    model = loads(compile_graph(graph))
    (circle,) = model.graphs
    inputs = [*graph.inputs, *graph.model.parameters]
    if len(circle.inputs) != len(inputs) or len(circle.outputs) != len(graph.outputs):
        raise ModelError(
            f"TICO kept {len(circle.inputs)} of {len(inputs)} inputs and {len(circle.outputs)} of "
            f"{len(graph.outputs)} outputs of {graph.signature}: not a version of TICO that export knows"
        )
    rename(circle, inputs, list(graph.outputs))
    circle.name = graph.signature
    for value in (*circle.inputs, *circle.outputs):
        role = {**graph.inputs, **graph.outputs}.get(value.name or "")
        if role is not None:
            value.meta["role"] = role
    model.signatures = [
        Signature(
            graph.signature,
            circle,
            dict(zip(graph.inputs, circle.inputs, strict=False)),
            dict(zip(graph.outputs, circle.outputs, strict=True)),
        )
    ]
    return model


@contextlib.contextmanager
def _complaints(logger_name: str) -> Iterator[list[str]]:
    """What is logged under that name in the meantime, instead of being printed."""
    texts: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    logger, handler = logging.getLogger(logger_name), Collect()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
