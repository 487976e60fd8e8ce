"""The ONNX Runtime engine against a model with known logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from o2o.errors import ModelError
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from tests.runtime_py.engines.litert.test_engine import assert_close
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import toy_onnx, write_onnx

pytest.importorskip("onnxruntime")
from runtime_py.engines.onnx import engine as engine_module
from runtime_py.engines.onnx.engine import MAX_CHUNK, OnnxEngine


def engine_of(toy: Toy, *, max_chunk: int = MAX_CHUNK, **options: object) -> OnnxEngine:
    return OnnxEngine(toy_onnx(toy, **options).SerializeToString(), max_chunk=max_chunk)


@pytest.mark.parametrize("every_logit", [False, True])
@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
@pytest.mark.parametrize("longest", [1, 3, 8])
def test_every_prompt_length_and_every_step(longest, ids_dtype, every_logit):
    """Prompts of 1 to S tokens, in one piece and in several, then decode to the end."""
    toy = Toy(capacity=8)
    engine = engine_of(toy, max_chunk=longest, ids_dtype=ids_dtype, every_logit=every_logit)
    assert (engine.capacity, engine.vocab_size) == (8, toy.vocab)
    text = np.random.default_rng(1).integers(0, toy.vocab, 8).tolist()
    session = engine.open_session()
    for length in [*range(1, 9), 3]:  # one session for all: rows of earlier prompts must not be seen
        for cache in session.kv_caches.values():
            cache.fill(1e6)
        assert_close(session.prefill(text[:length]), toy.logits(text[:length]))
        for position in range(length, 8):
            logits = session.decode(text[position], position)
            assert (logits.shape, logits.dtype) == ((toy.vocab,), np.float32)
            assert_close(logits, toy.logits(text[: position + 1]))
    session.close()
    engine.close()


def test_plan():
    engine = engine_of(Toy(capacity=8), max_chunk=3)
    assert engine.plan(8) == [Chunk(3, 0, 3), Chunk(3, 3, 6), Chunk(2, 6, 8)]
    assert engine.plan(8, num_cached=2) == [Chunk(3, 2, 5), Chunk(3, 5, 8)]
    assert engine.plan(4, num_cached=3) == [Chunk(1, 3, 4)]


def test_reusing_a_prefix_changes_nothing():
    toy = Toy(capacity=8)
    engine = engine_of(toy)
    session = Session(SessionPool(engine))
    rng = np.random.default_rng(2)
    for _ in range(60):
        text = rng.integers(0, 2, 8).tolist()  # of two ids, so that beginnings are often the same
        length = int(rng.integers(1, 9))
        assert_close(session.read(text[:length]), toy.logits(text[:length]))
        for end in range(length, int(rng.integers(length, 9))):
            assert_close(session.append(text[end]), toy.logits(text[: end + 1]))
    engine.close()


def test_caches_are_updated_in_place():
    toy = Toy()
    session = engine_of(toy).open_session()
    cache = session.kv_caches["value", 0]
    session.prefill([1, 2])
    session.decode(3, 2)
    rows = cache[0, :, :3].transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_array_equal(rows, toy.values[[1, 2, 3]])
    assert not cache[0, :, 3:].any()


def test_logits_are_the_callers_own():
    session = engine_of(Toy()).open_session()
    first = session.prefill([1, 2])
    second = session.decode(3, 2)
    before = first.copy(), second.copy()
    session.prefill([5, 6])
    session.decode(4, 2)
    np.testing.assert_array_equal((first, second), before)


@pytest.mark.parametrize("engines", [1, 2])
def test_two_sessions_do_not_share_their_texts(engines):
    toy = Toy()
    loaded = [engine_of(toy) for _ in range(engines)]
    one, two = loaded[0].open_session(), loaded[-1].open_session()
    one.prefill([1, 2, 3])
    two.prefill([4, 5, 6])
    assert_close(one.decode(7, 3), toy.logits([1, 2, 3, 7]))
    one.close()
    assert_close(two.decode(7, 3), toy.logits([4, 5, 6, 7]))
    two.close()
    for engine in loaded:
        engine.close()


@pytest.mark.parametrize("external", [False, True])
def test_a_file_and_its_external_data(tmp_path: Path, external: bool):
    toy = Toy()
    path = write_onnx(toy, tmp_path / "model.onnx", external)
    assert (tmp_path / "model.onnx.data").exists() is external
    engine = OnnxEngine(path, threads=2)
    assert_close(engine.open_session().prefill([1, 2, 3]), toy.logits([1, 2, 3]))
    assert engine.weight_dtype == "float32"
    engine.close()


def test_quiet_unless_debugging(capfd):
    model = toy_onnx(Toy()).SerializeToString()
    for debug in (False, True):
        engine = OnnxEngine(model, debug=debug)
        session = engine.open_session()
        session.prefill([1])
        session.close()
        engine.close()
        assert bool(capfd.readouterr().err) is debug


def with_contract(change, toy: Toy | None = None) -> bytes:
    """The toy with another contract."""
    model = toy_onnx(toy or Toy())
    contract = json.loads(model.metadata_props[0].value)
    change(contract)
    helper.set_model_props(model, {"o2o.contract": json.dumps(contract)})
    return model.SerializeToString()


def decode(change):
    return lambda contract: change(contract["signatures"]["decode"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.clear(), "its metadata o2o.contract is damaged"),
        (lambda c: c.update(version=2), "its o2o.contract has version 2; this o2o knows 1: update o2o"),
        (lambda c: c["signatures"].update(other=c["signatures"].pop("decode")), "no signature 'decode'"),
        (decode(lambda d: d.pop("inputs")), "damaged"),
        (decode(lambda d: d["inputs"].pop(1)), "decode has no position"),
        (decode(lambda d: d["inputs"][0].update(shape=[1, 1])), "a fixed number of tokens: convert it with"),
        (
            decode(lambda d: d["inputs"][0].update(name="ids")),
            "inputs are past_key_0, .* tokens, which differ from",
        ),
        (decode(lambda d: d["inputs"][2].update(shape=[1, 2, 9, 3])), "differ in capacity"),
        (
            decode(lambda d: d["outputs"][1].update(shape=[1, 2, 4, 3])),
            "does not return the KV cache 'past_key_0'",
        ),
    ],
)
def test_refuses_what_is_not_of_this_interface(change, message):
    with pytest.raises(ModelError, match=message) as error:
        OnnxEngine(with_contract(change))
    assert "\n" not in str(error.value)


def test_refuses_what_onnx_runtime_refuses(tmp_path):
    model = toy_onnx(Toy())
    model.graph.node[0].op_type = "Gathering"
    for wrong in (b"", b"\x89PNG\r\n\x1a\n", model.SerializeToString(), tmp_path / "nowhere.onnx"):
        with pytest.raises(ModelError, match=r"ONNX Runtime refuses the model: \w") as error:
            OnnxEngine(wrong)
        assert "\n" not in str(error.value)
    path = write_onnx(Toy(), tmp_path / "model.onnx", external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data") as error:
        OnnxEngine(path)
    assert ".cc:" not in str(error.value), "a place in the source code of ONNX Runtime"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(ModelError) as error:
        OnnxEngine(path)
    assert str(path) not in str(error.value), "the caller names it"


@pytest.mark.parametrize(("old", "new"), [("11]", "13]"), ("8,", "80,"), ("int64", "float32")])
def test_a_contract_that_contradicts_the_graph(old, new):
    model = toy_onnx(Toy())
    model.metadata_props[0].value = model.metadata_props[0].value.replace(old, new)
    with pytest.raises(ModelError, match=r"ONNX Runtime refuses the model: Error in execution: ") as error:
        OnnxEngine(model.SerializeToString())
    assert "\n" not in str(error.value)


def test_the_toy_is_onnx():
    onnx.checker.check_model(toy_onnx(Toy(), every_logit=True), full_check=True)


@pytest.mark.parametrize("every_logit", [False, True])
def test_the_logits_of_each_token_of_a_text(every_logit, monkeypatch):
    toy = Toy(capacity=8)
    monkeypatch.setattr(engine_module, "MAX_LOGITS", 3 * 4 * toy.vocab)  # three tokens a run
    model = toy_onnx(toy, every_logit=every_logit)
    engine = OnnxEngine(model.SerializeToString())
    assert engine.gives_all_logits == every_logit
    session = engine.open_session()
    text = np.random.default_rng(4).integers(0, toy.vocab, 8).tolist()
    parts = [*session.logits(text)]
    assert [len(part) for part in parts] == ([3, 3, 2] if every_logit else [1] * 8)
    assert_close(np.concatenate(parts), np.array([toy.logits(text[: count + 1]) for count in range(8)]))
    engine.close()


@pytest.mark.parametrize("extras", ["softcap", "window", "slopes", "sinks", "bias of each head in a mask"])
def test_circle_files_with_more_than_causal_attention(extras, tmp_path):
    """Prompts in chunks, decode, copied rows and all logits are those of the Circle graph."""
    from o2o import formats
    from runtime_py.engines.model_file import ModelFile
    from runtime_py.engines.onnx.prepare import prepare
    from runtime_py.engines.options import EngineOptions
    from tests.o2o.lower.onnx.decoders import answers
    from tests.o2o.lower.onnx.test_attention import EXTRAS, Shape, attention_model

    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    expected = answers(attention_model(Shape(), EXTRAS[extras]), ids)
    file = tmp_path / "model.circle"
    formats.save(attention_model(Shape(), EXTRAS[extras]), file)
    with prepare(ModelFile(file), EngineOptions(threads=1, all_logits=True)) as prepared:
        engine = OnnxEngine(prepared.file, max_chunk=4)
    first, second = engine.open_session(), engine.open_session()
    assert_close(first.prefill(ids[:7]), expected[6])
    second.copy_rows(first, 0, 5)
    assert_close(second.prefill(ids[:8], 5), expected[7])
    for session, start in ((first, 7), (second, 8)):
        for position in range(start, len(ids)):
            assert_close(session.decode(ids[position], position), expected[position])
    assert_close(np.concatenate([*first.logits(ids)]), expected)
    engine.close()
