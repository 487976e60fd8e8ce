"""Named axes against numpy: the axes after a chain of operators are where the numbers really go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings

from o2o.operators import reference
from o2o.rewriting.axes import Axes, Factors, matmul_axes, trace_layout
from o2o.rewriting.matchers import MatchFailure
from tests.o2o.graphs import INT32, Graph

NAMES = "ABCDE"
REPEATED = "G"


@dataclass
class Chain:
    """Layout operators over a source with grouped axes; `preserved` if every cut is between factors."""

    factors: Factors
    axes: Axes  # of the source
    source: ir.Value
    result: ir.Value
    preserved: bool


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    sizes = {name: draw(st.sampled_from([1, 2, 2, 3])) for name in NAMES} | {
        REPEATED: draw(st.integers(2, 3))
    }
    factors = Factors(sizes)
    names = draw(st.permutations(NAMES))
    axes = factors.axes(*draw(groups(names)))
    graph = Graph("main")
    value = source = graph.input("x", factors.shape(axes), INT32)
    current, preserved, repeated = (
        axes,
        True,
        False,
    )  # current: the axes as long as all cuts are between factors
    for _ in range(draw(st.integers(1, 6))):
        shape = list(value.shape.numpy())  # type: ignore[union-attr]
        kind = draw(st.sampled_from(["regroup", "regroup", "transpose", "transpose", "reshape", "repeat"]))
        if kind == "transpose":
            order = draw(st.permutations(range(len(shape))))
            operand = graph.constant("order", np.int32(order))
            value = graph.op("TRANSPOSE", [value, operand], [shape[axis] for axis in order])
            current = tuple(current[axis] for axis in order) if preserved else current
        elif kind == "regroup" and preserved:
            current = factors.axes(*draw(groups([name for axis in current for name in axis])))
            operator = draw(st.sampled_from(["RESHAPE", "SQUEEZE"]))
            value = graph.op(operator, [value], factors.shape(current))
        elif kind == "reshape":  # of any size that fits: it may cut through factors
            total = math.prod(shape)
            first = draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
            value = graph.op("RESHAPE", [value], [first, total // first])
            preserved = False
        elif kind == "repeat" and preserved and not repeated:
            ones = [axis for axis, dim in enumerate(shape) if dim == 1]
            if not ones:
                continue
            axis = draw(st.sampled_from(ones))
            wide = [*shape[:axis], sizes[REPEATED], *shape[axis + 1 :]]
            value = graph.op("BROADCAST_TO", [value, graph.constant("wide", np.int32(wide))], wide)
            current = (*current[:axis], (REPEATED,), *current[axis + 1 :])
            repeated = True
    return Chain(factors, axes, source, value, preserved)


@st.composite
def groups(draw: st.DrawFn, names: Sequence[str]) -> list[tuple[str, ...]]:
    """`names`, in order, cut into up to six groups, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(names)), min_size=1, max_size=5)))
    return [tuple(names[start:end]) for start, end in zip([0, *cuts], [*cuts, len(names)], strict=True)]


def arranged(factors: Factors, source: Axes, axes: Axes, array: np.ndarray) -> np.ndarray:
    """`array`, which has the axes `source`, as a tensor with `axes`; factors it lacks are repeated."""
    names = [name for axis in source for name in axis]
    apart = array.reshape([factors.sizes[name] for name in names])
    wanted = [name for axis in axes for name in axis]
    apart = apart.transpose([names.index(name) for name in wanted if name in names])
    for index, name in enumerate(wanted):
        if name not in names:
            apart = np.repeat(np.expand_dims(apart, index), factors.sizes[name], index)
    return apart.reshape(factors.shape(axes))


@settings(max_examples=300, deadline=None)
@given(chain=chains())
def test_axes_are_where_the_numbers_go(chain: Chain) -> None:
    source, nodes = trace_layout(chain.result)
    assert source is chain.source
    try:
        axes = chain.factors.through(nodes, chain.axes, broadcast=REPEATED)
    except MatchFailure:
        if chain.preserved:
            raise  # every cut is between factors
        return
    assert chain.factors.shape(axes) == tuple(chain.result.shape.numpy())  # type: ignore[union-attr]
    numbers = np.arange(math.prod(chain.source.shape.numpy()), dtype=np.int32)  # type: ignore[union-attr]
    numbers = numbers.reshape(chain.source.shape.numpy())  # type: ignore[union-attr]
    actual = reference.evaluate(chain.result, {chain.source: numbers})
    np.testing.assert_array_equal(actual, arranged(chain.factors, chain.axes, axes, numbers))


@st.composite
def products(draw: st.DrawFn) -> tuple[Factors, Axes, Axes, bool, bool]:
    """Operands of a BATCH_MATMUL: sometimes a sound pairing, sometimes one gone wrong."""
    factors = Factors({name: draw(st.sampled_from([1, 2, 3])) for name in "ABMNK"})
    batch = draw(st.sampled_from([[], ["A"], ["A", "B"], ["AB"], ["", "AB"], ["A", ""]]))
    other = draw(st.sampled_from([batch] * 4 + [["B", "A"], ["BA"], ["", "A"], ["A", ""], ["M"]]))
    inner = draw(st.sampled_from(["K", "K", "K", "N", "M"]))
    adjoint = draw(st.booleans()), draw(st.booleans())
    lhs = factors.axes(*batch, *(["K", "M"] if adjoint[0] else ["M", "K"]))
    rhs = factors.axes(*other, *(["N", inner] if adjoint[1] else [inner, "N"]))
    return factors, lhs, rhs, *adjoint


@settings(max_examples=300, deadline=None)
@given(product=products())
def test_the_axes_of_a_product(product: tuple[Factors, Axes, Axes, bool, bool]) -> None:
    """Whatever is not refused is the sum over the one shared axis, head by head."""
    factors, lhs, rhs, adjoint_lhs, adjoint_rhs = product
    graph = Graph("main")
    x, y = graph.input("x", factors.shape(lhs)), graph.input("y", factors.shape(rhs))
    value = graph.op("BATCH_MATMUL", [x, y], [], adjointLhs=adjoint_lhs, adjointRhs=adjoint_rhs)
    node = value.producer()
    assert node is not None
    try:
        axes = matmul_axes(node, lhs, rhs)
    except MatchFailure:
        return
    generator = np.random.default_rng(0)
    left, right = (generator.integers(-5, 5, factors.shape(a)).astype(np.float32) for a in (lhs, rhs))
    apart = []
    for array, its in ((left, lhs), (right, rhs)):
        names = [name for axis in its for name in axis]
        apart += [array.reshape([factors.sizes[n] for n in names]), ["ABMNK".index(n) for n in names]]
    wanted = [name for axis in axes for name in axis]
    assume(len(set(wanted)) == len(wanted))
    expected = np.einsum(*apart, ["ABMNK".index(name) for name in wanted]).reshape(factors.shape(axes))
    actual = reference.evaluate(value, {x: left, y: right})
    assert actual.shape == factors.shape(axes)
    np.testing.assert_array_equal(actual, expected)


def test_a_product_that_broadcasts_its_batches_is_refused() -> None:
    """[K, 1, T, H] times [1, K, H, S] is [K, K, T, S]: every head with every other."""
    factors = Factors({"K": 2, "T": 3, "H": 4, "S": 5})
    graph = Graph("main")
    x, y = graph.input("x", [2, 1, 3, 4]), graph.input("y", [1, 2, 4, 5])
    node = graph.op("BATCH_MATMUL", [x, y], [2, 2, 3, 5]).producer()
    assert node is not None
    with pytest.raises(MatchFailure, match="pairs the heads"):
        matmul_axes(node, factors.axes("K", "", "T", "H"), factors.axes("", "K", "H", "S"))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [([6, 4], "cuts through"), ([2, 12, 2], "is larger|cuts through"), ([24, 2], "cuts through")],
)
def test_a_cut_through_a_factor_is_refused(shape: list[int], reason: str) -> None:
    factors = Factors({"T": 4, "N": 6})
    graph = Graph("main")
    y = graph.op("RESHAPE", [graph.input("x", [4, 6])], shape)
    with pytest.raises(MatchFailure, match=reason):
        factors.regroup(factors.axes("T", "N"), y)


def test_a_transpose_by_an_input_is_refused() -> None:
    factors = Factors({"T": 4, "N": 6})
    graph = Graph("main")
    y = graph.op("TRANSPOSE", [graph.input("x", [4, 6]), graph.input("order", [2], INT32)], [6, 4])
    with pytest.raises(MatchFailure, match="not constant"):
        factors.through(trace_layout(y)[1], factors.axes("T", "N"))


@pytest.mark.parametrize("factor", [None, "T"])
def test_a_broadcast_of_anything_but_the_group_is_refused(factor: str | None) -> None:
    factors = Factors({"T": 4, "N": 6})
    graph = Graph("main")
    y = graph.op("BROADCAST_TO", [graph.input("x", [1, 6]), graph.constant("to", np.int32([3, 6]))], [3, 6])
    with pytest.raises(MatchFailure, match="repeats no head group"):
        factors.through(trace_layout(y)[1], factors.axes("", "N"), broadcast=factor)
