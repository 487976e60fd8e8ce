"""Roles of a file without a contract, by the names of its tensors."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import contract_of
from o2o.errors import ModelError
from o2o.model import Model
from runtime_py.model.ai_edge_roles import guess_roles
from tests.runtime_py.toy import Toy


def made_elsewhere(**options) -> Model:
    options = {"prefill_length": 0, "cached_lengths": [4], "ai_edge": True} | options
    return formats.loads(Toy(**options).file_without_contract)


def test_names_tell_what_the_contract_tells():
    model = made_elsewhere()
    assert contract_of(model)["signatures"] == {}
    guess_roles(model)
    toy = Toy(prefill_length=0, cached_lengths=[4], ai_edge=True)
    assert contract_of(model) == toy.contract


def test_other_names_tell_nothing():
    model = made_elsewhere(ai_edge=False)
    guess_roles(model)
    assert contract_of(model)["signatures"] == {}


def test_a_mask_from_outside_is_not_made():
    model = made_elsewhere()
    inputs = model.signatures[0].inputs
    inputs["mask"] = inputs["tokens"]
    with pytest.raises(ModelError, match="prefill_4 takes the attention mask as an input: convert"):
        guess_roles(model)


def test_caches_in_another_layout_are_not_taken_for_this_one():
    """Newer converters turn values: [1, K, H, S]."""
    model = made_elsewhere()
    for values in (model.signatures[0].inputs, model.signatures[0].outputs):
        values["kv_cache_v_0"].shape = ir.Shape([1, 2, 3, 8])
    with pytest.raises(
        ModelError, match=r"several shapes, \[1, 2, 3, 8\], \[1, 8, 2, 3\]: all must be \[1, S, K, H"
    ):
        guess_roles(model)
