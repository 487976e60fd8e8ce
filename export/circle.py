"""Compile a graph to Circle, through torch.export and TICO, with named and typed inputs and outputs."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

import tico
import torch

from export.fx_passes import prepare_for_tico, quick_passes
from export.modules import ExportModule
from export.tensor_names import rename_tensors
from o2o import garbage_collection
from o2o.errors import ModelError, O2oError
from o2o.formats import loads
from o2o.model import Model, Signature
from o2o.rewriting.negative_indices import count_from_the_front


@quick_passes()
@garbage_collection.paused()
def compile_graph(graph: ExportModule) -> bytes:
    """Compile a graph.

    Args:
        graph: The graph to trace.

    Returns:
        A Circle file. Its inputs are the inputs of `graph`, then one for each parameter of the model.

    Raises:
        ModelError: torch.export cannot trace the architecture, or TICO lacks an operator of it.
    """
    kind = graph.model.kind
    try:
        with torch.no_grad():
            program = torch.export.export(graph.eval(), graph.example(), strict=False)
    except O2oError:
        raise
    except Exception as error:
        raise ModelError(
            f"torch.export cannot trace {graph.signature} of this {kind} model, which conversion does not "
            "support (--debug shows its error)"
        ) from error
    prepare_for_tico(program.graph)
    # torch.export emits O(inputs^2) input guards from these, which are never run.
    program.example_inputs = None
    config = tico.get_default_config()
    config.set("circle_optimize", False)  # it takes quadratic time; the filters clean up
    with _log_messages("tico.utils.convert") as messages:
        try:
            return tico.convert_from_exported_program(program, config=config).circle_binary
        except Exception as error:
            lacking = sorted({name for text in messages for name in re.findall(r"\(op\) (\S+)", text)})
            reason = f": it lacks {', '.join(lacking)}" if lacking else " (--debug shows its error)"
            raise ModelError(f"TICO cannot convert {graph.signature} of this {kind} model{reason}") from error


def convert_to_circle(graph: ExportModule) -> Model:
    """Compile a graph and name its inputs and outputs.

    Args:
        graph: The graph to trace.

    Returns:
        A Circle model of one signature. Its last inputs are the parameters, under their own names.

    Raises:
        ModelError: See `compile_graph`.
    """
    model = loads(compile_graph(graph))
    (circle,) = model.graphs
    inputs = [*graph.inputs, *graph.model.parameters]
    if len(circle.inputs) != len(inputs) or len(circle.outputs) != len(graph.outputs):
        raise ModelError(
            f"TICO wrote {len(circle.inputs)} of {len(inputs)} inputs and {len(circle.outputs)} of "
            f"{len(graph.outputs)} outputs of {graph.signature}: export does not support this version of TICO"
        )
    rename_tensors(circle, inputs, list(graph.outputs))
    circle.name = graph.signature
    count_from_the_front(circle)
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
def _log_messages(logger_name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger, and do not print them."""
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
