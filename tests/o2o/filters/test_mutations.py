"""Fusions on graphs with random changes: a graph that is still fused must mean the same.

It found caches with other readers, fused activations, and tables of other heads. The seeds
below are a sample; a search takes O2O_MUTANTS=20000 in the environment.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.fuse_bmm_lhs_const import FuseBmmLhsConst
from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.filters.fuse_rope import FuseRope
from o2o.filters.fusion import Fusion
from o2o.model import Model, shape_of
from tests.o2o import attention_graphs
from tests.o2o.filters import test_fuse_bmm_lhs_const, test_fuse_rms_norm, test_fuse_rope
from tests.o2o.mutations import mutate, values_of
from tests.tolerances import assert_close

MUTANTS = int(os.environ.get("O2O_MUTANTS", 100))

# Sizes that coincide hide mistakes in axes; sizes that differ show them.
Draw = random.Random


def attention(draw: Draw) -> tuple[Model, list[int]]:
    """A block, and positions to run it at."""
    same = draw.choice([2, 4])
    join = draw.choice(["none", "concat", "slice"])
    form = attention_graphs.Form(
        T=draw.choice([1, 2, 3, same]),
        K=draw.choice([1, 2, 3, same]),
        G=draw.choice([1, 2, same]),
        H=draw.choice([2, 4, same]),
        join=join,
        past=draw.choice([4, 5, 6]),
        mask=draw.choice(["causal"] if join == "concat" else ["causal", "none", "input"]),
        rotate=join == "none" or draw.random() < 0.6,
        scale=draw.choice(["scores", "q", "divide"]),
        rank=draw.choice([3, 4]),
        adjoint=draw.random() < 0.5,
        repeat=draw.choice(["broadcast", "fold"]),
        flat=draw.random() < 0.5,
        layout=(layout := draw.choice(["BNTH", "BTNH"])),
        contract_layout=layout,
        transposed=draw.random() < 0.3,
        returns_caches=join == "slice" and draw.random() < 0.5,
        mask_form=draw.choice(["slots", "rows", "table"]) if join == "slice" else "slots",
        position_per_token=draw.random() < 0.3,
    )
    last = form.past - form.T
    return attention_graphs.build(form), [0, 2] if join == "none" else sorted({0, min(1, last), last})


def rope(draw: Draw) -> tuple[Model, list[int]]:
    same = draw.choice([2, 4])
    shape = tuple(draw.choice([1, 2, same]) for _ in range(3))
    form = draw.choice(test_fuse_rope.FORMS)
    rows = draw.choice([1, shape[2]])
    return test_fuse_rope.build(replace(form, shape=(*shape, same), table_rows=rows)), [0]


def rms_norm(draw: Draw) -> tuple[Model, list[int]]:
    form = draw.choice(test_fuse_rms_norm.FORMS)
    batch = tuple(draw.choice([1, 2, 6]) for _ in range(draw.randint(0, 3)))
    form_with_batch = test_fuse_rms_norm.Form(form.square, form.root, form.swapped, batch)
    return test_fuse_rms_norm.build(form_with_batch), [0]


def product(draw: Draw) -> tuple[Model, list[int]]:
    same = draw.choice([1, 2, 3])
    sizes = [draw.choice([same, same, 4]) for _ in range(3)]
    batch = tuple(draw.choice([1, same]) for _ in range(draw.randint(0, 2)))
    turns = [draw.random() < 0.5 for _ in range(3)]
    form = test_fuse_bmm_lhs_const.Form(*sizes, batch, draw.randint(0, len(batch)), *turns)  # type: ignore[arg-type]
    return test_fuse_bmm_lhs_const.build(form), [0]


FAMILIES: dict[str, tuple[Callable[[Draw], tuple[Model, list[int]]], type[Fusion]]] = {
    "attention": (attention, FuseAttention),
    "rope": (rope, FuseRope),
    "rms_norm": (rms_norm, FuseRmsNorm),
    "product": (product, FuseBmmLhsConst),
}


def feeds_at(model: Model, position: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    actual = {}
    for value in model.graphs[0].inputs:
        name, shape = value.name or "", shape_of(value)
        if name == "position":
            actual[name] = position + np.arange(shape[0])
        else:
            actual[name] = generator.standard_normal(shape).astype(np.float32)
    return actual


def attention_first(graph: ir.Graph) -> None:
    """Put ATTENTION as early as it can run: a runtime may, and then others read caches that it wrote."""
    needed: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type == "ATTENTION"]
    while waiting:
        node = waiting.pop()
        needed.add(node)
        waiting += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    graph.extend([*(n for n in list(graph) if n in needed), *(n for n in list(graph) if n not in needed)])


def pairs(
    before: ir.Graph, after: ir.Graph, expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The outputs of `before`, with those in their places; by name where caches are outputs no more."""
    outputs = list(expected.items())[: len(before.outputs)]
    if len(before.outputs) == len(after.outputs):
        yield from zip((array for _, array in outputs), actual.values(), strict=False)
    else:
        yield from ((array, actual[name]) for name, array in outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_fused_means_what_it_meant(family: str) -> None:
    make, fusion = FAMILIES[family]
    fused = 0
    for seed in range(MUTANTS):
        draw = random.Random(seed)
        model, positions = make(draw)
        changes = [mutate(model, draw) for _ in range(draw.choice([1, 1, 2, 3]))]
        before = formats.loads(formats.dumps(model))
        feeds = [feeds_at(before, position, seed) for position in positions]
        expected = [values_of(before.graphs[0], given) for given in feeds]
        if any(outputs is None for outputs in expected):
            continue
        filter_ = fusion()
        filter_.apply(model, filter_.parser().parse_args(["--explain"]))
        fused += "fused 1" in filter_.messages[0]
        after = formats.loads(formats.dumps(model))
        for order in ("as it is", "attention first"):
            if order == "attention first":
                attention_first(after.graphs[0])
            for given, outputs in zip(feeds, expected, strict=True):
                actual = values_of(after.graphs[0], given)
                where = f"{family} {seed}: {'; '.join(filter(None, changes))} ({order})"
                assert actual is not None, where
                for one, other in pairs(before.graphs[0], after.graphs[0], outputs or {}, actual):
                    assert_close(other, one, err_msg=where)
    assert fused > MUTANTS / 8, "most mutants are harmless and fused, or this proves little"
