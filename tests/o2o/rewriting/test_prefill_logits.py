"""Prefills that have lost their logits get them again: the logits of decode, for each token."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import role_of
from o2o.filters import (
    downcast_input_ids,
    fuse_fc,
    gc,
    lower_litert,
    merge_circles,
    quantize_weights,
    sign_ai_edge,
)
from o2o.formats.fingerprint import fingerprint
from o2o.model import Model, shape_of
from o2o.rewriting import prefill_logits
from o2o.rewriting.prefill_logits import restore_prefill_logits
from runtime_py.engines.options import EngineOptions
from runtime_py.package import Package
from tests.runtime_py.toy import Toy
from tests.tolerances import assert_close


@pytest.fixture(scope="module", params=["none", "dynamic_int8"])
def signed(request, exported_model, tmp_path_factory) -> Path:
    """A TFLite file with AI Edge's signatures, whose prefill of 4 tokens gives no logits."""
    folder = tmp_path_factory.mktemp("signed")
    graphs = [exported_model("grouped", form) for form in ("prefill_4", "static")]
    steps = [
        (merge_circles, ["--sig-names", "prefill,decode", *map(str, graphs)]),
        (downcast_input_ids, []),
        (gc, []),
        *(
            [(quantize_weights, ["--recipe", request.param]), (fuse_fc, [])]
            if request.param != "none"
            else []
        ),
        (lower_litert, []),
        (sign_ai_edge, []),
    ]
    file: Path | None = None
    for number, (step, args) in enumerate(steps):
        done = folder / f"{number}.model"
        assert step.main([*args, *([str(file)] if file else []), "-o", str(done)]) == 0
        file = done
    assert file is not None
    return file.rename(folder / "model.tflite")


def logits_of(model: Model, name: str) -> list[tuple[int, ...]]:
    (signature,) = (signature for signature in model.signatures if signature.name == name)
    roles = ((value, role_of(value)) for value in signature.outputs.values())
    return [shape_of(value) for value, role in roles if role is not None and role.kind == "logits"]


def test_drafts_are_verified_with_the_bits_of_decode(signed):
    """Without a prefill that gives logits; quantized weights too."""
    with Package.load(signed) as package, closing(package.engine()) as engine:
        session, ids = engine.open_session(), [5, 3, 8, 1, 9, 2, 7, 4]
        expected = [session.decode(token, position) for position, token in enumerate(ids)]
        assert np.array_equal(session.verify(ids, 0), expected)
        assert np.array_equal(session.verify(ids[2:5], 2), expected[2:5])


def test_the_logits_of_each_token_are_those_of_decode(signed):
    model = formats.load(signed)
    vocab = logits_of(model, "decode")[0][-1]
    assert logits_of(model, "prefill") == []
    assert restore_prefill_logits(model)
    assert logits_of(model, "prefill") == [(1, 4, vocab)]
    assert not restore_prefill_logits(model)
    package = Package.load(signed, options=EngineOptions(threads=1, disk_cache=None))
    scorer, plain = package.engine(all_logits=True), package.engine()
    assert (scorer.gives_all_logits, plain.gives_all_logits) == (True, False)
    text = np.random.default_rng(0).integers(0, vocab, 31).tolist()
    session, steps = scorer.open_session(), plain.open_session()
    expected = np.array([steps.decode(token, position) for position, token in enumerate(text)])
    for length in (1, 3, 4, 5, 9, 31):
        assert_close(np.concatenate([*session.logits(text[:length])]), expected[:length])
    scorer.close()
    plain.close()


def test_the_file_with_logits_is_a_file(signed, tmp_path):
    model = formats.load(signed)
    restore_prefill_logits(model)
    formats.save(model, tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").stat().st_size < signed.stat().st_size + 60_000  # no second weights
    engine = Package.load(tmp_path / "model.tflite").engine(all_logits=True)
    assert engine.gives_all_logits
    engine.close()


def test_logits_that_differ_from_those_of_decode_are_not_used(signed, monkeypatch):
    """The engine compares them: here the last layer gets a weight of the layer before it."""
    restore = prefill_logits.restore_prefill_logits

    def restore_with_a_wrong_weight(model: Model) -> bool:
        restored = restore(model)
        for signature in model.signatures[:1]:
            down = {
                name: value
                for name, value in signature.graph.initializers.items()
                if name.endswith("down_proj.weight")
            }
            assert len(down) == 3
            earlier, later = sorted(down)[-2:]
            down[later].const_value = down[earlier].const_value
        return restored

    monkeypatch.setattr(prefill_logits, "restore_prefill_logits", restore_with_a_wrong_weight)
    messages: list[str] = []
    options = EngineOptions(threads=1, disk_cache=None, log=messages.append)
    engine = Package.load(signed, options=options).engine(all_logits=True)
    assert messages == ["the logits of its prefills differ from those of decode, which is used instead"]
    assert not engine.gives_all_logits
    engine.close()


def test_a_model_of_one_layer_is_left_alone():
    model = formats.loads(Toy(prefill_length=0, cached_lengths=[4], ai_edge=True).file)
    before = fingerprint(model)
    assert not restore_prefill_logits(model)
    assert fingerprint(model) == before


def test_layers_that_differ_are_left_alone(signed):
    """An operator of the second layer is another one: the third cannot be built like it."""
    model = formats.load(signed)
    for signature in model.signatures:
        (node,) = (
            node
            for node in signature.graph
            if node.op_type == "FULLY_CONNECTED" and "layers.1.self_attn.o_proj" in node.outputs[0].name
        )
        node.attributes["fusedActivationFunction"] = ir.AttrInt64("fusedActivationFunction", 1)
    before = fingerprint(model)
    assert not restore_prefill_logits(model)
    assert fingerprint(model) == before


def test_prefills_with_logits_are_left_alone():
    model = formats.loads(Toy(prefill_length=0, cached_lengths=[4]).file)
    assert not restore_prefill_logits(model)
