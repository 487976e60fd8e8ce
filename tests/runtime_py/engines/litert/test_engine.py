"""The LiteRT engine against a model with known logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel

from o2o.errors import ModelError
from runtime_py.engines.litert.engine import LiteRtEngine, LiteRtSession
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import Toy
from tests.tolerances import assert_close


def engine_of(toy: Toy, **options) -> LiteRtEngine:
    return LiteRtEngine(toy.file, Contract.parse(toy.contract), **options)


@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
@pytest.mark.parametrize("cache_layout", ["BNTH", "BTNH"])
@pytest.mark.parametrize("prefill_layout", ["BNTH", "BTNH"])
@pytest.mark.parametrize("prefill_length", [5, 8, 10])
def test_every_prompt_length_and_every_step(prefill_length, prefill_layout, cache_layout, ids_dtype):
    """T below, at and above S; layouts equal and not; prompts of 1 to S tokens, then decode to the end."""
    toy = Toy(
        prefill_length=prefill_length,
        capacity=8,
        prefill_layout=prefill_layout,
        cache_layout=cache_layout,
        ids_dtype=ids_dtype,
    )
    engine = engine_of(toy)
    assert (engine.capacity, engine.vocab_size) == (8, toy.vocab)
    text = np.random.default_rng(1).integers(0, toy.vocab, 8).tolist()
    session = engine.open_session()
    for length in [*range(1, 9), 3]:  # one session for all: rows of earlier prompts must not be seen
        assert_close(session.prefill(text[:length]), toy.logits(text[:length]))
        for position in range(length, 8):
            logits = session.decode(text[position], position)
            assert logits.shape == (toy.vocab,)
            assert_close(logits, toy.logits(text[: position + 1]))
    engine.close()


def poison(session: LiteRtSession) -> None:
    """Fill the KV caches with large numbers, as an earlier text may leave them."""
    for buffers in session.kv_caches.allocated.values():
        for _, rows in buffers.values():
            rows.fill(1e6)


@pytest.mark.parametrize("cached_lengths", [[8], [4], [3], [5, 3], [2, 7, 4]])
@pytest.mark.parametrize("prefill_length", [0, 6])
@pytest.mark.parametrize(
    ("cache_layout", "ids_dtype"), [("BNTH", "int32"), ("BTNH", "int64"), ("BTNH", "int32")]
)
def test_several_prefills(prefill_length, cached_lengths, cache_layout, ids_dtype):
    """Every prompt, in one piece and in several, among them such as would reach beyond the capacity."""
    toy = Toy(
        prefill_length=prefill_length,
        cached_lengths=cached_lengths,
        capacity=8,
        cache_layout=cache_layout,
        ids_dtype=ids_dtype,
    )
    engine = engine_of(toy)
    session = engine.open_session()
    text = np.random.default_rng(1).integers(0, toy.vocab, 8).tolist()
    for length in range(1, 9):
        poison(session)
        assert_close(session.prefill(text[:length]), toy.logits(text[:length]))
        for position in range(length, 8):
            assert_close(session.decode(text[position], position), toy.logits(text[: position + 1]))
    engine.close()


@pytest.mark.parametrize("cached_lengths", [[8], [3], [2, 5]])
def test_prefills_without_logits(cached_lengths):
    """Decode reads the last token of every prompt; there is a position for each token."""
    toy = Toy(prefill_length=0, cached_lengths=cached_lengths, capacity=8, ai_edge=True)
    engine = engine_of(toy)
    session = engine.open_session()
    text = np.random.default_rng(1).integers(0, toy.vocab, 8).tolist()
    for length in range(1, 9):
        poison(session)
        assert engine.plan(length)[-1] == Chunk(1, length - 1, length)
        assert_close(session.prefill(text[:length]), toy.logits(text[:length]))
        for position in range(length, 8):
            assert_close(session.decode(text[position], position), toy.logits(text[: position + 1]))
    engine.close()


def test_long_prompts_take_few_runs(monkeypatch):
    engine = engine_of(Toy(prefill_length=0, cached_lengths=[2, 4], capacity=11))
    assert [run.length for run in engine.plan(11)] == [4, 4, 4]
    session = engine.open_session()
    runs: list[str] = []
    run_by_index = CompiledModel.run_by_index

    def counted(model, index, *buffers):
        runs.append(list(model.get_signature_list())[index])
        run_by_index(model, index, *buffers)

    monkeypatch.setattr(CompiledModel, "run_by_index", counted)
    session.prefill([1] * 11)
    session.decode(1, 10)
    assert runs == ["prefill_4"] * 3 + ["decode"]


def test_caches_are_updated_in_place(monkeypatch):
    toy = Toy()
    session = engine_of(toy).open_session()
    bound: list[set[int]] = []
    run_by_index = CompiledModel.run_by_index

    def observed(model, index, inputs, outputs):
        bound.append({id(buffer) for buffer in inputs} & {id(buffer) for buffer in outputs})
        run_by_index(model, index, inputs, outputs)

    monkeypatch.setattr(CompiledModel, "run_by_index", observed)
    session.prefill([1, 2])
    session.decode(3, 2)
    (buffers,) = session.kv_caches.allocated.values()
    assert bound[-1] == {id(buffer) for buffer, _ in buffers.values()}
    rows = buffers["value", 0][1].reshape(-1, 6)[:3]
    np.testing.assert_array_equal(rows, toy.values[[1, 2, 3]])


def test_prefill_writes_into_the_caches_when_it_can(monkeypatch):
    same = engine_of(Toy(prefill_length=8, capacity=8, prefill_layout="BNTH", cache_layout="BNTH"))
    session = same.open_session()
    bound: list[list[object]] = []
    run_by_index = CompiledModel.run_by_index

    def observed(model, index, inputs, outputs):
        bound.append(outputs)
        run_by_index(model, index, inputs, outputs)

    monkeypatch.setattr(CompiledModel, "run_by_index", observed)
    session.prefill([1, 2])
    (buffers,) = session.kv_caches.allocated.values()
    assert {id(buffer) for buffer, _ in buffers.values()} <= {id(buffer) for buffer in bound[0]}
    session.close()
    same.close()


def test_logits_are_the_callers_own():
    session = engine_of(Toy()).open_session()
    first = session.prefill([1, 2])
    before = first.copy()
    session.decode(3, 2)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("engines", [1, 2])
def test_two_sessions_do_not_share_their_texts(engines):
    toy = Toy(cached_lengths=[4])
    loaded = [engine_of(toy) for _ in range(engines)]
    one, two = loaded[0].open_session(), loaded[-1].open_session()
    one.prefill([1, 2, 3])
    two.prefill([4, 5, 6])
    assert_close(one.decode(7, 3), toy.logits([1, 2, 3, 7]))
    assert_close(two.decode(7, 3), toy.logits([4, 5, 6, 7]))
    one.close()
    assert_close(two.decode(1, 4), toy.logits([4, 5, 6, 7, 1]))
    two.close()
    for engine in loaded:
        engine.close()


def test_quiet_unless_debugging(capfd):
    toy = Toy()
    for debug in (False, True):
        engine = engine_of(toy, debug=debug)
        session = engine.open_session()
        session.prefill([1])
        session.close()
        engine.close()
        assert bool(capfd.readouterr().err) is debug


def test_inputs_and_outputs_of_one_name():
    """As litert-torch names its caches."""
    toy = Toy(cache_layout="BNTH", same_names=True)
    session = engine_of(toy).open_session()
    assert_close(session.prefill([1, 2]), toy.logits([1, 2]))
    assert_close(session.decode(3, 2), toy.logits([1, 2, 3]))


def test_refuses_what_litert_refuses():
    toy = Toy()
    with pytest.raises(ModelError, match="LiteRT refuses the model"):
        LiteRtEngine(toy.file[:200], Contract.parse(toy.contract))


def changed(change: Callable[[Any], None]) -> bytes:
    """The file of a toy after a change of its tables."""
    import ai_edge_litert.schema_py_generated as tfl
    import flatbuffers

    table = tfl.ModelT.InitFromObj(tfl.Model.GetRootAs(Toy().file, 0))
    change(table)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(table.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def newer_operator(table: Any) -> None:
    table.operatorCodes[0].version = 99


def custom_operator(table: Any) -> None:
    code = table.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = b"unheard"


def missing_weights(table: Any) -> None:
    for buffer in table.buffers:
        if buffer.data is not None and len(buffer.data) == 11 * 6 * 4:
            buffer.data = np.zeros(0, np.uint8)


def missing_operand(table: Any) -> None:
    table.subgraphs[-1].operators[-1].inputs = table.subgraphs[-1].operators[-1].inputs[:1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (newer_operator, "Didn't find op for builtin opcode '[A-Z]+' version '99'"),
        (custom_operator, r"unresolved custom op: unheard; Node number \d+ \(unheard\) failed to prepare"),
        (missing_weights, r"Input tensor \d+ lacks data"),
        (missing_operand, r"Node number \d+ \(FULLY_CONNECTED\) failed to prepare"),
    ],
)
def test_refuses_in_one_line_with_the_reason_of_litert(tmp_path, capfd, change, reason):
    path = tmp_path / "model.tflite"
    path.write_bytes(changed(change))
    with pytest.raises(ModelError, match=rf"model.tflite: LiteRT refuses the model: .*{reason}") as caught:
        load_engine(path, EngineOptions(disk_cache=None))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_refuses_a_model_that_does_not_return_its_caches():
    contract = Toy().contract
    contract["signatures"]["decode"]["outputs"].pop()
    with pytest.raises(ModelError, match="past_value_0"):
        LiteRtEngine(b"", Contract.parse(contract))
    contract = Toy(cached_lengths=[4]).contract
    contract["signatures"]["prefill_4"]["outputs"][1]["shape"] = [1, 5, 2, 3]
    with pytest.raises(ModelError, match="neither this cache nor its 4 new rows"):
        LiteRtEngine(b"", Contract.parse(contract))


@pytest.mark.parametrize("prefill_length", [0, 6, 10])
@pytest.mark.parametrize("cached_lengths", [[], [4], [5, 3], [8]])
def test_the_logits_of_each_token_of_a_text(prefill_length, cached_lengths):
    """Also where the last run starts earlier, and feeds tokens again."""
    if not (prefill_length or cached_lengths):
        return
    toy = Toy(prefill_length=prefill_length, cached_lengths=cached_lengths, capacity=8)
    engine = engine_of(toy)
    session = engine.open_session()
    assert engine.gives_all_logits
    text = np.random.default_rng(4).integers(0, toy.vocab, 8).tolist()
    for length in [8, *range(1, 9)]:
        poison(session)
        logits = np.concatenate([*session.logits(text[:length])])
        assert_close(logits, np.array([toy.logits(text[: count + 1]) for count in range(length)]))
    engine.close()


def test_without_logits_of_prefills_decode_gives_them():
    toy = Toy(prefill_length=0, cached_lengths=[4], ai_edge=True)
    engine = engine_of(toy)
    assert not engine.gives_all_logits
    parts = [*engine.open_session().logits([1, 2, 3, 4, 5])]
    assert [len(part) for part in parts] == [1] * 5
    assert_close(np.concatenate(parts)[-1], toy.logits([1, 2, 3, 4, 5]))
    engine.close()


def test_a_prefill_that_litert_cannot_prepare_is_one_line(capfd):
    """LiteRT allocates the tensors of a signature at its first run, and logs why it cannot."""
    import ai_edge_litert.schema_py_generated as tfl
    import flatbuffers

    toy = Toy(prefill_length=0, cached_lengths=[3])
    table = tfl.ModelT.InitFromObj(tfl.Model.GetRootAs(toy.file, 0))
    (index,) = (s.subgraphIndex for s in table.signatureDefs if s.signatureKey == b"prefill_3")
    graph = table.subgraphs[index]
    reshape = next(
        op for op in graph.operators[::-1] if op.builtinOptionsType == tfl.BuiltinOptions.ReshapeOptions
    )
    shape = table.buffers[graph.tensors[reshape.inputs[1]].buffer]
    shape.data = (np.asarray(shape.data, np.uint8).view(np.int32) + 1).view(np.uint8)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(table.Pack(builder), b"TFL3")
    engine = LiteRtEngine(bytes(builder.Output()), Contract.parse(toy.contract))
    session = engine.open_session()
    assert_close(session.prefill([1]), toy.logits([1]))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"^LiteRT refuses the model: .*Node number \d+"):
            session.prefill([1, 2, 3])
    assert_close(session.prefill([1]), toy.logits([1]))
    engine.close()
    assert capfd.readouterr().err == ""
