"""The operators from q k' to a softmax: scales, a soft-cap, masks and biases, sinks.

    scores = cap * tanh(scale * q k' / cap)      without a cap: scale * q k'
    scores = scores + factor * value, or hidden where a condition selects something else, any number of times
    softmax over the keys, with one more logit a head (sink) in front of or behind them

Operators are followed from the softmax up. A scale below a mask scales the mask too, and is in its factor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import DOMAIN, attribute, shape_of
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import NotEvaluable, evaluate, slice_bounds, unknown_sources
from o2o.operators.traits import LAYOUT_OPS, PASS_THROUGH_OPS
from o2o.rewriting.matchers import (
    check_no_activation,
    constant_ints,
    fail,
    operand_and_factor,
    producer_of,
    scalar,
    single_user,
)

_SELECTS = ("SELECT", "SELECT_V2")
_STEPS = ("ADD", "MUL", "DIV", "TANH", "MAXIMUM", *_SELECTS, *LAYOUT_OPS)


@dataclass(frozen=True)
class Term:
    """One step that biases or hides scores.

    Attributes:
        kind: `add`: scores + factor * value. `hide`: scores are hidden where `value`, a condition, is true;
            `show`: where it is false.
        value: The bias or condition.
        factor: The factor of a bias. 1 for a condition.
        node: The step.
    """

    kind: Literal["add", "hide", "show"]
    value: ir.Value
    factor: float
    node: ir.Node


@dataclass
class Scores:
    """The path from q k' to a softmax.

    Attributes:
        product: The product q k'.
        steps: The nodes after it, in order, up to the concatenation with sinks if there is one.
        scale: The product of all scales of q k'.
        cap: The soft-cap, or None.
        terms: Masks and biases, in order.
        sinks: The logits that are concatenated with the scores, or None.
        sinks_first: Whether they stand in front of the keys.
        zeroes_nan: Whether weights that are no numbers become 0: a query that sees no key gets zeros.
        precision: The dtype of the softmax, if the scores are cast to it and the weights are cast back.
    """

    product: ir.Node
    steps: list[ir.Node] = field(default_factory=list)
    scale: float = 1.0
    cap: float | None = None
    terms: list[Term] = field(default_factory=list)
    sinks: ir.Value | None = None
    sinks_first: bool = False
    zeroes_nan: bool = False
    precision: ir.DataType | None = None


def find_scores(softmax: ir.Node) -> Scores:
    """Follow the operand of a softmax up to q k'.

    Args:
        softmax: The SOFTMAX.

    Returns:
        The path from q k' to it.

    Raises:
        MatchFailure: Another operator stands between them, or a mask stands before a cap.
    """
    value = softmax.inputs[0]
    assert value is not None
    factor = float(attribute(softmax, "beta", 1.0))
    value, precision = _before_cast(value)
    value = _before_maximum(value)
    sinks, sinks_first = None, False
    joined = producer_of(value, "CONCATENATION")
    if joined is not None:
        value, sinks, sinks_first = _without_sinks(joined)
        if factor != 1:
            fail("the softmax scales the sinks too", softmax.outputs[0])
        value = _before_maximum(value)
    steps: list[ir.Node] = []
    terms: list[Term] = []
    cap: float | None = None
    while True:
        node = producer_of(value, "BATCH_MATMUL", *_STEPS)
        if node is None:
            fail("the softmax is not over products of queries and keys", value)
        if node.op_type == "BATCH_MATMUL":
            break
        steps.append(node)
        check_no_activation(node)
        if node.op_type in ("ADD", *_SELECTS) and cap is not None:
            fail("the mask is capped too", node.outputs[0])
        if node.op_type == "ADD":
            value, bias = _scores_and_bias(node)
            terms.append(Term("add", bias, factor, node))
        elif node.op_type in _SELECTS:
            value, term = _selected(node, factor)
            terms.append(term)
        elif node.op_type == "MAXIMUM":
            value = _above_hidden(node, factor)
        elif node.op_type == "TANH":
            if cap is not None:
                fail("the scores are capped twice", node.outputs[0])
            cap, factor = factor, 1.0
            value = _operand(node)
        elif node.op_type in ("MUL", "DIV"):
            product = operand_and_factor(node)
            if product is None:
                fail(
                    "the scores are multiplied by something that is not one constant number", node.outputs[0]
                )
            value, number = product
            factor *= number
        else:
            value = _operand(node)
    if cap is not None and cap <= 0:
        fail(f"the scores are capped to {cap:.6g}", softmax.outputs[0])
    scale = factor * (1.0 if cap is None else cap)
    return Scores(node, steps[::-1], scale, cap, terms[::-1], sinks, sinks_first, precision=precision)


def follow_weights(softmax: ir.Node, scores: Scores) -> tuple[ir.Node, list[ir.Value]]:
    """Follow the weights of a softmax down to their product with the values.

    Args:
        softmax: The SOFTMAX.
        scores: The path to it. Its sinks are sliced off after the softmax.

    Returns:
        The BATCH_MATMUL, and the values from the weights of the keys to its operand. `scores.zeroes_nan` is
        set.

    Raises:
        MatchFailure: The weights have another user, or sinks stay among them.
    """
    weights = softmax.outputs[0]
    if (zeroed := _without_nan(weights)) is not None:
        weights, scores.zeroes_nan = zeroed, True
    weights = _cast_to(weights, scores.product.outputs[0].dtype)
    if scores.sinks is not None:
        node = single_user(weights, "the attention weights")
        if node.op_type not in ("SLICE", "STRIDED_SLICE"):
            fail("the sinks stay among the attention weights", weights)
        shape = shape_of(weights)
        first = 1 if scores.sinks_first else 0
        try:
            bounds = slice_bounds(node)
        except NotEvaluable as reason:
            fail(str(reason), node.outputs[0])
        keys = (first, first + shape[-1] - 1, 1)
        if bounds != [*((0, dim, 1) for dim in shape[:-1]), keys]:
            fail("the slice of the attention weights does not leave out the sinks alone", node.outputs[0])
        weights = node.outputs[0]
    product, path = follow_down(weights, "the attention weights", "BATCH_MATMUL")
    if product.inputs[0] is not path[-1] or product.inputs[1] is path[-1]:
        fail("the attention weights are not the left operand of their product with v", product.outputs[0])
    return product, path


def _without_nan(weights: ir.Value) -> ir.Value | None:
    """The weights with 0 in place of NaN, if these are their only use; torch.onnx writes them so."""
    users = {use.node for use in weights.uses()}
    select = next((user for user in users if user.op_type in _SELECTS), None)
    if select is None or select.domain != DOMAIN or weights.is_graph_output():
        return None
    condition, if_true, if_false = select.inputs
    test = producer_of(condition, "NOT_EQUAL")
    if test is None or users != {select, test} or list(test.inputs) != [weights, weights]:
        return None
    is_only_use = condition is not None and len(condition.uses()) == 1 and not condition.is_graph_output()
    return select.outputs[0] if is_only_use and if_false is weights and scalar(if_true) == 0 else None


def is_finite(value: ir.Value) -> bool:
    """Whether a mask is proven to have no infinite entry.

    Args:
        value: A mask.

    Returns:
        True for numbers, and for choices and moves of such.
    """
    if (array := constant_array(value)) is not None:
        return bool(np.isfinite(array).all())
    node = producer_of(value, *_SELECTS, *PASS_THROUGH_OPS)
    if node is None:
        return False
    first = node.inputs[0]
    dtype = first.dtype if node.op_type == "CAST" and first is not None else None
    if dtype is not None and not dtype.is_floating_point():
        return True
    operands = node.inputs[1:] if node.op_type in _SELECTS else [first]
    return all(operand is not None and is_finite(operand) for operand in operands)


def follow_down(value: ir.Value, what: str, until: str) -> tuple[ir.Node, list[ir.Value]]:
    """Follow `value` down through layout operators.

    Args:
        value: Where to start.
        what: What `value` is, for the message.
        until: The operator at which to stop.

    Returns:
        The node `until`, and the values from `value` to its operand.

    Raises:
        MatchFailure: A value on the path has another user.
    """
    path = [value]
    while True:
        node = single_user(path[-1], what)
        if node.op_type == until:
            return node, path
        if node.op_type not in LAYOUT_OPS:
            fail(f"{what} should go into {until}, not {node.op_type}", path[-1])
        path.append(node.outputs[0])


def nodes_of(path: list[ir.Value]) -> list[ir.Node]:
    """Return the layout operators on a path.

    Args:
        path: The values that `follow_down` returns.

    Returns:
        The producers of all but the first.
    """
    return [value.producer() for value in path[1:]]  # type: ignore[misc]


def _operand(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _before_cast(value: ir.Value) -> tuple[ir.Value, ir.DataType | None]:
    """The scores in half precision, and the dtype to which they are cast for the softmax."""
    node = producer_of(value, "CAST")
    source = node.inputs[0] if node is not None else None
    if source is None or source.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return value, None
    return (source, value.dtype) if value.dtype == ir.DataType.FLOAT else (value, None)


def _cast_to(weights: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """The weights in the dtype of the scores. In half precision they may become float32 in between."""
    value = weights
    while (node := single_user(value, "the attention weights")).op_type == "CAST":
        value = node.outputs[0]
        if value.dtype not in (dtype, ir.DataType.FLOAT):
            fail(f"the attention weights are cast to {value.dtype}", value)
    if value.dtype != dtype:
        fail(f"the attention weights are {value.dtype}, not {dtype} as the scores", value)
    return value


def _before_maximum(value: ir.Value) -> ir.Value:
    """x, if `value` is x minus its maximum over the last axis, which a softmax ignores; else `value`."""
    node = producer_of(value, "SUB")
    if node is None or attribute(node, "fusedActivationFunction", 0):
        return value
    x, subtracted = node.inputs
    maximum = producer_of(subtracted, "REDUCE_MAX")
    if x is None or maximum is None or maximum.inputs[0] is not x or not attribute(maximum, "keepDims", 0):
        return value
    return x if constant_ints(maximum.inputs[1]) in ([-1], [len(shape_of(x)) - 1]) else value


def _without_sinks(node: ir.Node) -> tuple[ir.Value, ir.Value, bool]:
    """The scores, the sinks, and whether these come first, of CONCATENATION over the last axis."""
    check_no_activation(node)
    output = node.outputs[0]
    rank = len(shape_of(output))
    if len(node.inputs) != 2 or attribute(node, "axis", 0) % rank != rank - 1:
        fail("the scores are concatenated with something that is no sink", output)
    for scores, sinks in (node.inputs, node.inputs[::-1]):
        assert scores is not None
        assert sinks is not None
        if shape_of(sinks)[-1] == 1 and _leads_to_product(scores):
            return scores, sinks, sinks is node.inputs[0]
    fail("the scores are concatenated with something that is no sink", output)


def _scores_and_bias(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The operands of an ADD: the scores, which lead to q k', and what is added to them."""
    first, second = node.inputs
    assert first is not None
    assert second is not None
    for scores, bias in ((first, second), (second, first)):
        if _leads_to_product(scores):
            if shape_of(scores) != shape_of(node.outputs[0]):
                fail("the mask is larger than the scores", bias)
            return scores, bias
    fail("no operand of the sum comes from a product of q and k", node.outputs[0])


def _selected(node: ir.Node, factor: float) -> tuple[ir.Value, Term]:
    """The scores, and the term of a SELECT between scores and a number that hides a key."""
    condition, if_true, if_false = node.inputs
    assert condition is not None
    if node.op_type == "SELECT" and shape_of(condition) != shape_of(node.outputs[0]):
        fail("SELECT chooses whole rows of the scores", node.outputs[0])
    for scores, other, kind in ((if_true, if_false, "show"), (if_false, if_true, "hide")):
        if scores is None or other is None or not _leads_to_product(scores):
            continue
        if shape_of(scores) != shape_of(node.outputs[0]):
            fail("the mask is larger than the scores", condition)
        if not _hides(other, factor):
            fail("the mask selects something else than a very negative number", other)
        return scores, Term(kind, condition, 1.0, node)  # type: ignore[arg-type]
    fail("no choice of the selection comes from a product of q and k", node.outputs[0])


def _above_hidden(node: ir.Node, factor: float) -> ir.Value:
    """The scores of a MAXIMUM with a number that hides a key, as in XGLM: a softmax hides lower ones too."""
    for scores, number in (node.inputs, node.inputs[::-1]):
        assert scores is not None
        assert number is not None
        if _leads_to_product(scores) and shape_of(scores) == shape_of(node.outputs[0]):
            if _hides(number, factor):
                return scores
            fail("the scores have a lower bound", node.outputs[0])
    fail("no operand of the maximum comes from a product of q and k", node.outputs[0])


def _hides(value: ir.Value, factor: float) -> bool:
    """Whether `value` is constant, and so negative that no key with this score is seen."""
    if unknown_sources(value):
        return False
    try:
        return bool(np.all(evaluate(value, {}) * np.float64(factor) <= HIDDEN_THRESHOLD))
    except NotEvaluable:
        return False


def _leads_to_product(value: ir.Value | None) -> bool:
    """Whether steps of scores lead from a product to `value`."""
    pending = [value]
    while pending:
        node = producer_of(pending.pop(), "BATCH_MATMUL", *_STEPS)
        if node is None:
            continue
        if node.op_type == "BATCH_MATMUL":
            return True
        if node.op_type in ("ADD", "MAXIMUM"):
            pending += node.inputs
        elif node.op_type in _SELECTS:
            pending += node.inputs[1:]
        elif node.op_type in ("MUL", "DIV"):
            product = operand_and_factor(node)
            pending += node.inputs if product is None else [product[0]]
        else:
            pending.append(node.inputs[0])
    return False
