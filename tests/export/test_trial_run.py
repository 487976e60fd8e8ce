"""What a run without numbers shows of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from export.model import LanguageModel
from export.trial_run import Trial, trial_run
from o2o.errors import ModelError
from tests.checkpoints import GROUPED


def structure(model_type: str, **fields: Any) -> LanguageModel:
    from transformers import AutoConfig

    return LanguageModel(AutoConfig.for_model(model_type, **fields), "grouped")


@pytest.mark.parametrize(
    ("model_type", "fields", "shapes"),
    [
        ("llama", GROUPED, [(2, 10)] * 6),
        ("gpt_bigcode", {"n_embd": 48, "n_head": 6, "n_layer": 1}, [(1, 8)] * 2),
        ("falcon", {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 1}, [(1, 8)] * 2),
    ],
)
def test_the_rows_that_layers_cache(
    model_type: str, fields: dict[str, Any], shapes: list[tuple[int, int]]
) -> None:
    assert structure(model_type, **fields).cache_shapes == shapes


def test_a_model_that_takes_a_mask_of_ones() -> None:
    model = structure("bloom", hidden_size=48, n_layer=1, n_head=6, vocab_size=131)
    shapes: list[tuple[int, ...]] = []
    model.module.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["attention_mask"].shape)), with_kwargs=True
    )
    assert model.cache_shapes == [(6, 8)] * 2
    assert shapes == [(1, 1, 2, 2), (1, 2)]


def test_a_model_that_cannot_run_so() -> None:
    def fails(*arguments: Any) -> None:
        raise ValueError("numbers are needed")

    assert trial_run(fails, []) == Trial()
    model = structure("llama", **GROUPED)
    model.__dict__["_trial"] = Trial()
    assert model.cache_shapes == [(2, 10)] * 6


def test_what_export_refuses_is_refused() -> None:
    def refuses(*arguments: Any) -> None:
        raise ModelError("not causal")

    with pytest.raises(ModelError, match="not causal"):
        trial_run(refuses, [torch.zeros(1)])
