"""Roles of a file without a contract."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import contract_of
from o2o.errors import ModelError
from o2o.model import Model
from runtime_py.model.inferred_roles import infer_roles
from tests.o2o.graphs import linear
from tests.o2o.roles.decoders import Form, decoder
from tests.runtime_py.toy import Toy


def from_elsewhere(**options) -> Model:
    options = {"prefill_length": 0, "cached_lengths": [4], "ai_edge": True} | options
    return formats.loads(Toy(**options).file_without_contract)


@pytest.mark.parametrize("layout", ["BTNH", "BNTH"])
def test_ai_edge(layout: str) -> None:
    model = from_elsewhere(cache_layout=layout)
    assert contract_of(model)["signatures"] == {}
    infer_roles(model)
    toy = Toy(prefill_length=0, cached_lengths=[4], ai_edge=True, cache_layout=layout)
    assert contract_of(model) == toy.contract


def test_other_names() -> None:
    model, roles = decoder(Form(), (1, 3))
    infer_roles(model)
    assert all(value.meta["role"] == role for value, role in roles.items())


def test_a_model_without_signatures_is_a_decode() -> None:
    model, _ = decoder(Form())
    model.signatures.clear()
    infer_roles(model)
    assert [*contract_of(model)["signatures"]] == ["decode"]


def test_a_signature_that_is_no_decoder_stays_without_roles() -> None:
    model, _ = decoder(Form())
    encoder = linear()
    encoder.signatures[0].name = "encode"
    model.graphs += encoder.graphs
    model.signatures += encoder.signatures
    infer_roles(model)
    assert [*contract_of(model)["signatures"]] == ["entry_1"]


def test_two_masks_are_refused() -> None:
    model, _ = decoder(Form(mask="float"))
    graph = model.graphs[0]
    mask = next(value for value in graph.inputs if value.shape == [1, 1, 1, 6])
    local = ir.Value(name="mask_local", shape=mask.shape, type=mask.type)
    graph.inputs.append(local)
    model.signatures[0].inputs["mask_local"] = local
    mask.uses()[1].node.replace_input_with(1, local)
    with pytest.raises(ModelError, match="are masks, and nothing shows which has a window"):
        infer_roles(model)


def test_no_decoder_at_all() -> None:
    with pytest.raises(ModelError, match="main: no input is token ids, and none is a KV"):
        infer_roles(linear())


def test_a_prefill_alone_is_not_enough() -> None:
    model, _ = decoder(Form(), (3,))
    with pytest.raises(ModelError, match="no signature reads one token"):
        infer_roles(model)
