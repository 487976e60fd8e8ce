"""Where a graph attends, in each form that it may have."""

from __future__ import annotations

import pytest

from o2o.roles.attention_blocks import attention_blocks
from tests.o2o.attention_graphs import Form, build
from tests.o2o.fused_graphs import Form as Fused
from tests.o2o.fused_graphs import attention
from tests.o2o.roles.decoders import Form as DecoderForm
from tests.o2o.roles.decoders import decoder


@pytest.mark.parametrize("join", ["concat", "slice"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("repeat", ["broadcast", "fold"])
def test_scattered_operators(join: str, rank: int, repeat: str) -> None:
    graph = build(Form(join=join, rank=rank, repeat=repeat)).graphs[0]
    (block,) = attention_blocks(graph)
    assert [value.name for value in block.key.inputs] == ["past_key_0"]
    assert [value.name for value in block.value.inputs] == ["past_value_0"]


def test_attention() -> None:
    (block,) = attention_blocks(attention(Fused(layout="BTNH", mask=(1, 7))).graphs[0])
    assert [value.name for value in block.key.inputs] == ["past_key_0"]
    assert {point.value.name for point in block.masks} == {"mask"}
    (labels,) = block.key.labels.values()
    assert labels == ("B", "T", "N", "H")


def test_blocks_come_in_the_order_of_execution() -> None:
    model, roles = decoder(DecoderForm(layers=3))
    blocks = attention_blocks(model.graphs[0])
    assert [roles[block.key.inputs[0]].layer for block in blocks] == [0, 1, 2]


def test_other_products_are_none() -> None:
    """A product with a constant matrix is a projection."""
    model, _ = decoder(DecoderForm(layers=0))
    assert attention_blocks(model.graphs[0]) == []
