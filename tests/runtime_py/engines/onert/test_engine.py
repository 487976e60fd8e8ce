"""The onert engine, compared with transformers and the LiteRT engine; and its errors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o import formats
from o2o.contract import contract_of
from o2o.errors import ModelError
from o2o.filters import (
    fuse_attention,
    legalize_onert,
    lower_litert,
    merge_circles,
    quantize_weights,
    reshape_io,
    transpose_io_kvcache,
)
from o2o.formats.writer import plan
from o2o.rewriting.builder import add_constant
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.litert.engine import load as load_litert
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.model.contract import Contract
from tests.exported import checkpoint
from tests.o2o.language_model_graphs import S as ROWS
from tests.o2o.language_model_graphs import V, greedy_logits, language_model
from tests.tolerances import assert_close

pytest.importorskip("onert", reason="pip install onert==0.1.0")

from runtime_py.engines.onert.engine import OnertEngine, load

S = 32
FORMS = {"fused": ("grouped", "concat"), "written": ("demo", "static")}
Exported = Callable[[str, str], Path]


def load_file(file: Path, **options: Any) -> OnertEngine:
    return load(ModelFile(file), EngineOptions(**options))


def filtered(main: Callable[[list[str]], int], out: Path, *arguments: object) -> Path:
    assert main([*map(str, arguments), "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def exported(
    request, tmp_path_factory, exported_model: Exported, shared_directory: Path
) -> tuple[Path, Path]:
    """(a model of prefill and decode over caches of S rows, its checkpoint)."""
    shape, form = request.param
    folder = tmp_path_factory.mktemp("onert")
    prefill, decode = exported_model(shape, "prefill"), exported_model(shape, form)
    if form == "concat":
        decode = filtered(fuse_attention.main, folder / "1.circle", decode)
        sizes = f"[1,2,{S - 2},10]", f"[1,2,{S},10]"
        decode = filtered(reshape_io.main, folder / "2.circle", "input", "--by_shape", *sizes, decode)
        decode = filtered(transpose_io_kvcache.main, folder / "3.circle", decode)
    renamed = folder / "decode.circle"
    renamed.write_bytes(decode.read_bytes())
    model = filtered(merge_circles.main, folder / "model.circle", prefill, renamed)
    return model, checkpoint(shared_directory, shape)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.circle"
    formats.save(language_model(), path)
    return path


def test_logits_after_every_prompt_and_every_step(exported: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = np.random.default_rng(0).integers(0, theirs.config.vocab_size, S).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    engine = load_file(model)
    session = engine.open_session()
    assert (engine.capacity, engine.vocab_size) == (S, theirs.config.vocab_size)
    for length in (1, 2, 17, S - 1, S, 3):  # one session for all: rows of earlier prompts must not be seen
        assert_close(session.prefill(ids[:length]), wanted[length - 1])
        for position in range(length, S):
            assert_close(session.decode(ids[position], position), wanted[position])
    engine.close()


def greedy(engine: OnertEngine | LiteRtEngine, prompt: list[int]) -> list[int]:
    session = Session(SessionPool(engine))
    tokens = [int(session.read(prompt).argmax())]
    for _ in range(len(prompt), engine.capacity):
        tokens.append(int(session.append(tokens[-1]).argmax()))
    return tokens


def test_the_tokens_of_transformers_and_litert_to_the_end(exported: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    litert = load_litert(ModelFile(model), EngineOptions(disk_cache=None))
    engine = load_file(model)
    ids = np.random.default_rng(1).integers(0, theirs.config.vocab_size, 9).tolist()
    for length in (1, 5, 9):
        prompt = torch.tensor([ids[:length]])
        wanted = theirs.generate(prompt, do_sample=False, max_length=S + 1, eos_token_id=-1)[0, length:]
        assert greedy(engine, ids[:length]) == wanted.tolist() == greedy(litert, ids[:length])
    engine.close()
    litert.close()


def test_int8_weights_are_about_the_same(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = exported
    smaller = filtered(quantize_weights.main, tmp_path / "int8.circle", "--recipe", "dynamic_int8", model)
    exact, engine = load_file(model), load_file(smaller)
    exact_session, session = exact.open_session(), engine.open_session()
    for position, token in enumerate([3, 100, 7, 51]):
        wanted = exact_session.decode(token, position)
        assert np.abs(session.decode(token, position) - wanted).max() < 0.15 * np.abs(wanted).max()
    engine.close()
    exact.close()


def test_every_prompt_of_a_model_known_by_heart(toy: Path) -> None:
    engine = load_file(toy)
    session = engine.open_session()
    assert (engine.capacity, engine.vocab_size) == (ROWS, V)
    text = np.random.default_rng(2).integers(0, V, ROWS).tolist()
    for length in [*range(1, ROWS + 1), 2]:
        logits = session.prefill(text[:length])
        assert (logits.shape, logits.dtype) == ((V,), np.float32)
        assert_close(logits, greedy_logits(text[:length]))
    engine.close()


def test_cached_tokens_are_not_fed_again(toy: Path) -> None:
    engine = load_file(toy)
    session = engine.open_session()
    assert engine.plan(4) == [Chunk(1, position, position + 1) for position in range(4)]
    assert engine.plan(4, num_cached=2) == [Chunk(1, 2, 3), Chunk(1, 3, 4)]
    text = [3, 1, 4, 1, 5]
    session.prefill(text[:3])
    assert_close(session.prefill(text, num_cached=3), greedy_logits(text))
    engine.close()


def test_rows_behind_are_not_seen_and_caches_stay_where_they_are(toy: Path) -> None:
    """The KV caches are full of large numbers, as an earlier text may leave them."""
    engine = load_file(toy)
    session = engine.open_session()
    places = [array.__array_interface__["data"] for array in session.inputs]
    for cache in session.kv_caches.values():
        cache[:] = 1e6
    text = [5, 2, 8]
    assert_close(session.prefill(text), greedy_logits(text))
    assert [array.__array_interface__["data"] for array in session.inputs] == places
    caches = session.kv_caches.values()
    assert all((cache[3:] == 1e6).all() and (cache[:3] != 1e6).all() for cache in caches)
    engine.close()


def test_logits_are_the_callers(toy: Path) -> None:
    engine = load_file(toy)
    session = engine.open_session()
    logits = session.decode(3, 0)
    before = logits.copy()
    session.decode(4, 1)
    np.testing.assert_array_equal(logits, before)
    logits[:] = 0  # it can be written to
    engine.close()


def test_nothing_is_printed(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = load_file(toy)
    session = engine.open_session()
    session.decode(1, 0)
    engine.close()
    assert capfd.readouterr() == ("", "")


def test_a_legalized_file_is_loaded_where_it_is(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = filtered(legalize_onert.main, tmp_path / "decode.circle", toy)
    monkeypatch.setattr(formats, "save", lambda *_: pytest.fail("it was written again"))
    engine = load_file(file)
    session = engine.open_session()
    assert_close(session.prefill([5, 2, 8]), greedy_logits([5, 2, 8]))
    engine.close()


def test_nothing_is_left_behind(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = dict(os.environ)
    engine = load_file(toy, threads=2)
    session = engine.open_session()
    assert not list((tmp_path / "temporary").iterdir())
    session.decode(1, 0)  # onert does not need the file any more
    engine.close()
    assert dict(os.environ) == before


def test_sessions_take_turns(toy: Path) -> None:
    engine = load_file(toy)
    one, two = engine.open_session(), engine.open_session()
    one.prefill([1, 2])
    two.prefill([4, 5])
    assert_close(one.decode(3, 2), greedy_logits([1, 2, 3]))
    one.close()
    assert_close(two.decode(3, 2), greedy_logits([4, 5, 3]))
    two.close()
    engine.close()


def contract_in(file: Path) -> Contract:
    return Contract.parse_decode(contract_of(formats.load(file)))


def test_whole_caches_are_refused(toy: Path) -> None:
    with pytest.raises(ModelError, match=r"'present_key_0', not one new row: run legalize\.onert"):
        OnertEngine(toy, contract_in(toy))


def test_onerts_message_is_the_error(toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file is not what the contract describes: the message is one line."""
    contract = contract_in(filtered(legalize_onert.main, tmp_path / "decode.circle", toy))
    capfd.readouterr()
    with pytest.raises(ModelError) as refused:
        OnertEngine(toy, contract)
    assert str(refused.value) == (
        "onert refuses the model: Fail to load model: Unsupported operation: DYNAMIC_UPDATE_SLICE"
    )
    assert capfd.readouterr() == ("", "")


def test_a_file_that_crashes_onert_is_an_error(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """onert crashes on constants behind the FlatBuffer; it does so in a child process."""
    contract = contract_in(filtered(legalize_onert.main, tmp_path / "decode.circle", toy))
    model = formats.load(tmp_path / "decode.circle")
    (table,) = (v for v in model.graphs[0].initializers.values() if v.name == "head")
    large = add_constant(model.graphs[0], np.zeros((V, 1000 * 6), np.float32), "large")
    assert table.const_value is not None
    table.const_value, large.const_value = large.const_value, table.const_value
    planned = plan(model, limit=0)
    with open(tmp_path / "far.circle", "wb") as file:
        planned.write(file)
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"onert crashes on the model \(SIG[A-Z]+\)"):
        OnertEngine(tmp_path / "far.circle", contract)
    assert capfd.readouterr() == ("", "")


def test_tflite_is_refused(toy: Path, tmp_path: Path) -> None:
    file = filtered(lower_litert.main, tmp_path / "model.tflite", toy)
    with pytest.raises(ModelError, match="onert needs a Circle model"):
        load_file(file)
