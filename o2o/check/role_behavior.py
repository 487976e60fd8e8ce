"""Roles of a contract against the behavior of the model: its caches, its position, its keys and values.

Rows of a cache after the tokens that a run reads are empty: they must not change the logits. The row before
them must. Keys act on the logits through a SOFTMAX alone, values also past it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from o2o.check.feeds import Case, random_feeds
from o2o.check.reference_runner import runner_of
from o2o.check.runner import Arrays, Io, IoTensor, Runner
from o2o.check.tensors import relative_difference
from o2o.contract import role_of
from o2o.errors import ModelError
from o2o.model import Model, Signature, operands, users
from o2o.operators.attention import Attention, is_attention
from o2o.operators.core_attention import is_core_attention

KNOWN = ("tokens", "position", "key_cache", "value_cache")
TOLERANCE = 1e-4


def refuse_wrong_roles(model: Model) -> None:
    """Compare the roles of a model with what its operators do.

    A signature is compared if it has logits and all its inputs have a role. A model that no engine runs is
    compared by its graph alone.

    Args:
        model: A copy with weights. It becomes the check's own.

    Raises:
        ModelError: A role contradicts the model; the message names the input.
    """
    for signature in model.signatures:
        _refuse_crossed_kinds(signature)
    try:
        runner = runner_of(model, "the result", or_numpy=True)
    except ModelError:
        return
    for name, io in runner.io.items():
        if all(tensor.kind in KNOWN for tensor in io.inputs.values()):
            _refuse_wrong_rows(runner, name, io)


def _refuse_wrong_rows(runner: Runner, name: str, io: Io) -> None:
    logits = next((output for output, tensor in io.outputs.items() if tensor.kind == "logits"), None)
    caches = {n: t for n, t in io.inputs.items() if t.capacity is not None}
    kinds = [tensor.kind for tensor in io.inputs.values()]
    if logits is None or not caches or "position" not in kinds or "tokens" not in kinds:
        return
    tokens = max(tensor.shape[-1] for tensor in io.inputs.values() if tensor.kind == "tokens")
    capacity = min(tensor.capacity or 0 for tensor in caches.values())
    middle = (capacity - tokens) // 2
    positions = [position for position in (middle, middle + 1) if 1 <= position < capacity - tokens]
    is_read = False
    for position in positions:
        feeds = random_feeds(io.inputs, Case(position))
        before = runner.run(name, feeds).outputs[logits]

        def changes(rows: slice, some: Mapping[str, IoTensor]) -> bool:
            other = _with_other_rows(feeds, some, rows)  # noqa: B023 - called in this round
            after = runner.run(name, other).outputs[logits]
            return relative_difference(before, after) > TOLERANCE  # noqa: B023

        empty = slice(position + tokens, None)
        if changes(empty, caches):
            wrong = next((n for n, t in caches.items() if changes(empty, {n: t})), next(iter(caches)))
            raise ModelError(
                f"--check: rows of {wrong} of {name} after position {position} change the logits: its role, "
                "its layout or the role of the position is wrong"
            )
        is_read |= changes(slice(position - 1, position), caches)
    if positions and not is_read:
        wrong = next(n for n, tensor in io.inputs.items() if tensor.kind == "position")
        raise ModelError(
            f"--check: rows of the caches of {name} before the position {wrong} do not change the logits: "
            "the role of the position or the layouts are wrong"
        )


def _with_other_rows(feeds: Arrays, caches: Mapping[str, IoTensor], rows: slice) -> Arrays:
    generator = np.random.default_rng(1)
    other = dict(feeds)
    for name, tensor in caches.items():
        numbers = feeds[name].copy()
        place = [slice(None)] * numbers.ndim
        assert tensor.token_axis is not None
        place[tensor.token_axis] = rows
        numbers[tuple(place)] = generator.standard_normal(numbers[tuple(place)].shape)
        other[name] = numbers
    return other


def _refuse_crossed_kinds(signature: Signature) -> None:
    """Refuse keys that reach the logits past every SOFTMAX, and values that do not."""
    graph = signature.graph
    attends = any(
        node.op_type == "SOFTMAX" or is_attention(node) or is_core_attention(node) for node in graph
    )
    logits = [value for value in graph.outputs if (role := role_of(value)) and role.kind == "logits"]
    if not attends or not logits or any(node.op_type == "STABLEHLO_COMPOSITE" for node in graph):
        return
    for value in graph.inputs:
        role = role_of(value)
        if role is None or not role.is_cache:
            continue
        reaches = any(one in logits for one in _reached(graph, value))
        if reaches != (role.kind == "value_cache"):
            how = "reaches the logits past every SOFTMAX" if reaches else "acts through a SOFTMAX alone"
            raise ModelError(f"--check: {value.name} of {signature.name} {how}, so it is no {role.kind}")


def _reached(graph: ir.Graph, start: ir.Value) -> set[ir.Value]:
    """The values that depend on `start` without a SOFTMAX between."""
    reached, pending = {start}, [start]
    while pending:
        value = pending.pop()
        for node in users(value, graph):
            if node.op_type == "SOFTMAX" or _is_key(node)(value):
                continue
            new = [output for output in node.outputs if output not in reached]
            reached.update(new)
            pending += new
    return reached


def _is_key(node: ir.Node) -> Callable[[ir.Value], bool]:
    """Whether an operand of an attention operator acts through its softmax alone."""
    if is_attention(node):
        of = Attention.of(node)
        return lambda value: value is of.k_cache
    if is_core_attention(node):
        return lambda value: value is not node.inputs[2]
    return lambda value: value not in operands(node)
