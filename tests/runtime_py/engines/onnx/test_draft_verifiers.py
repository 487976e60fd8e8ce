"""Graphs that verify drafts have the bits of decode steps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines import prepared_artifacts
from runtime_py.engines.engine import Engine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.options import EngineOptions
from runtime_py.engines.registry import installed
from runtime_py.generation.generate import generate
from runtime_py.generation.session import Session
from runtime_py.generation.session_pool import SessionPool
from runtime_py.generation.verification import Verification
from runtime_py.text.detokenizer import Detokenizer
from tests.o2o.lower.onnx.decoders import Shape, decoder
from tests.o2o.lower.onnx.test_attention import EXTRAS, attention_model
from tests.o2o.lower.onnx.test_attention import Shape as OneLayer
from tests.o2o.window_graphs import window_model
from tests.runtime_py.generation.test_generate import Digits
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif("onnx" not in installed(), reason="no onnxruntime")

VERIFY_LENGTHS = (4, 8, 16)
S = 40
DECODERS: dict[str, tuple[Shape, str]] = {
    "float32": (Shape(S=S), ""),
    "float16": (Shape(S=S, layout="BNTH", rotate=False), "float16"),
    "int8, columns of whole blocks of 128": (Shape(N=8, D=128, I=256, S=S), "dynamic_int8"),
    "int8, rows that are filled up": (Shape(N=6, H=24, D=48, I=72, S=S, tied=True), "dynamic_int8"),
    "int4 in blocks of 32": (Shape(S=S), "dynamic_int4_block32"),
}


def model_of(shape: Shape, recipe: str) -> Model:
    model = decoder(shape)
    if recipe:
        quantize(model, find_recipe(recipe))
    return formats.loads(formats.dumps(model))


def onnx_engine(file: Path, model: Model, **options: object) -> Engine:
    formats.save(model, file)
    return load_engine(file, EngineOptions(engine="onnx", **{"disk_cache": None, **options})).engine  # type: ignore[arg-type]


def assert_exact(engine: Engine) -> None:
    """A text in runs of several tokens, each after a rejected draft, against the same text step by step."""
    V, capacity = engine.vocab_size, engine.capacity
    ids = np.random.default_rng(5).integers(0, V, capacity).tolist()
    steps, session = engine.open_session(), engine.open_session()
    expected = [steps.prefill(ids[:3]), *(steps.decode(ids[p], p) for p in range(3, capacity))]
    assert np.array_equal(session.prefill(ids[:3]), expected[0])
    position, lengths = 3, engine.verify_lengths(3)
    assert lengths
    while lengths:
        count = lengths[position % len(lengths)] - position % 2
        draft = ids[position : position + count]
        session.verify([draft[0], *((token + 1) % V for token in draft[1:])], position)
        rows = session.verify(draft, position)
        assert np.array_equal(rows, expected[position - 2 : position - 2 + count])
        position += count
        lengths = engine.verify_lengths(position)
    assert np.array_equal(session.decode(ids[position], position), expected[position - 2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, threads: int, tmp_path: Path) -> None:
    with closing(
        onnx_engine(
            tmp_path / "model.circle", model_of(*DECODERS[name]), threads=threads, rounded_drafts=True
        )
    ) as engine:
        assert engine.verify_setup(8) > 0
        assert_exact(engine)
        assert engine.verify_setup(8) == 0


@pytest.mark.parametrize("form", ["ort", "standard"])
@pytest.mark.parametrize("extras", [name for name in EXTRAS if name != "plain"])
def test_masks_and_other_options_of_attention(extras: str, form: str, tmp_path: Path) -> None:
    lowered = lower_to_onnx(attention_model(OneLayer(), EXTRAS[extras]), form, "num_logits")
    file = tmp_path / "model.onnx"
    file.write_bytes(ir.to_proto(lowered).SerializeToString())
    with closing(load_engine(file, EngineOptions(disk_cache=None)).engine) as engine:
        assert_exact(engine)


def test_window_caches_have_no_drafts(tmp_path: Path) -> None:
    """Their rows move at other tokens with drafts, and attention adds up in another order."""
    with closing(onnx_engine(tmp_path / "model.circle", window_model(12))) as engine:
        assert engine.verify_lengths(4) == []


@pytest.mark.parametrize("recipe", ["", "dynamic_int8", "dynamic_int4_block32"])
def test_texts_are_the_same_with_and_without_drafts(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without positions, a text soon repeats. The graphs are in the disk cache, beside the packed weights."""
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 0)
    monkeypatch.setattr(Verification, "pays_setup", lambda self, length, saved, setup: True)
    monkeypatch.setattr(Verification, "add", lambda self, length, seconds: None)
    cache, shape = DiskCache(tmp_path / "cache"), Shape(S=90, layers=1, rotate=False)
    texts, sessions = [], []
    for speculate in (False, True):
        engine = onnx_engine(
            tmp_path / "model.circle",
            model_of(shape, recipe),
            speculate=speculate,
            rounded_drafts=True,
            disk_cache=cache,
        )
        with closing(engine):
            session = Session(SessionPool(engine))
            tokens = generate(session, [1, 2, 3] * 3, Detokenizer(Digits()))  # type: ignore[arg-type]
            texts.append([token.id for token in tokens])
            sessions.append(session)
    assert texts[0] == texts[1]
    assert not sessions[0].drafts.runs
    assert sessions[1].drafts.accepted > 4
    assert not sessions[1].verification.refused


def test_a_stored_graph_that_is_deleted_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself verifies. If it rounds otherwise, the first comparison refuses it."""
    monkeypatch.setattr(prepared_artifacts, "MIN_SECONDS", 0)
    cache = DiskCache(tmp_path / "cache")
    with closing(
        onnx_engine(tmp_path / "model.circle", model_of(*DECODERS["float32"]), disk_cache=cache)
    ) as engine:
        (entry,) = cache.folder.iterdir()
        assert {file.name for file in entry.glob("verify_*")} == {f"verify_{T}.onnx" for T in VERIFY_LENGTHS}
        for file in entry.glob("verify_*"):
            file.unlink()
        session = engine.open_session()
        assert_close(session.verify([1, 2, 3, 4], 0)[-1], engine.open_session().prefill([1, 2, 3, 4]))
        assert engine.verify_setup(8) == 0
