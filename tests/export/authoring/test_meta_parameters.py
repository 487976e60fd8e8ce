"""A model on the meta device: parameters have shapes only, buffers have the numbers of the model's code."""

from __future__ import annotations

import torch
from torch import nn

from export.authoring.meta_parameters import meta_parameters


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_parameter("absent", None)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(2), persistent=False)
        nn.init.zeros_(self.scale)


def test_parameters_and_buffers() -> None:
    with torch.device("meta"), meta_parameters():
        model = Model()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.head.weight is model.embedding.weight
    assert model.frequencies.tolist() == [1.0, 0.10000000149011612]
    assert [tuple(one.shape) for one in model.parameters()] == [(4,), (6, 4), (4,), (4,)]


def test_modules_made_later_are_as_usual() -> None:
    with meta_parameters():
        Model()
    model = Model()
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.scale.tolist() == [0.0] * 4
    assert model.norm.weight.tolist() == [1.0] * 4
