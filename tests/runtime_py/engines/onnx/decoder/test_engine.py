"""Decoders in ONNX in the forms of other exporters: logits, sessions, and one line for what cannot be run."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx import TensorProto

from o2o.errors import ModelError
from o2o.filters import merge_circles, sign_contract
from runtime_py.engines.loading import load_engine
from runtime_py.engines.onnx.decoder.engine import DecoderEngine
from runtime_py.engines.options import EngineOptions
from tests.runtime_py.toy_decoder import NAMES, POSITIONS, ROWS, Form, expected, write_decoder

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
SCRAMBLED = {name: f"arg_{number}" for number, name in enumerate([*NAMES, "use_cache_branch", "keep"])}
FORMS = {
    "optimum": Form(),
    "renamed": Form(names=SCRAMBLED),
    "merged": Form(branch=True),
    "merged, renamed": Form(branch=True, names=SCRAMBLED),
    "no mask": Form(mask=False, position="first"),
    "no position": Form(position="none"),
    "static": Form(cache="static"),
    "static, renamed": Form(cache="static", names=SCRAMBLED),
    "tensor scatter": Form(cache="scatter"),
    "window": Form(cache="window", mask=False),
    "number of logits": Form(keep=True),
    "float16 caches": Form(cache_dtype=TensorProto.FLOAT16),
    "bfloat16 caches": Form(cache_dtype=TensorProto.BFLOAT16),
    "traced with one token": Form(causal=False),
    "one token": Form(length=1),
    "keys and values in one": Form(cache="stacked"),
    "keys and values in one, renamed": Form(
        cache="stacked", names={**SCRAMBLED, "past": "arg_20", "present": "arg_21"}
    ),
    "three axes of positions": Form(position="axes"),
    "four tokens": Form(cache="static", length=4),
    "no caches": Form(cache="none"),
    "no caches, fixed length": Form(cache="none", length=16),
}
ROUNDED = {"float16 caches": 2e-3, "bfloat16 caches": 2e-2}
WINDOW = 5


def engine(form: Form, tmp_path: Path, log: list[str] | None = None) -> DecoderEngine:
    return DecoderEngine(
        write_decoder(form, tmp_path / "model.onnx"), log=(log if log is not None else []).append
    )


@pytest.mark.parametrize("name", FORMS)
def test_logits_of_prompts_steps_and_texts(name: str, tmp_path: Path) -> None:
    """A prompt of any length, in any split, then steps, going back, and a copy of a prefix."""
    limit = ROUNDED.get(name, 1e-5)
    ids = IDS[:WINDOW] if name == "window" else IDS
    logits = expected(ids)
    with closing(engine(FORMS[name], tmp_path)) as loaded:
        assert loaded.vocab_size == logits.shape[1]
        session, other = loaded.open_session(), loaded.open_session()
        for length in range(1, len(ids)):
            np.testing.assert_allclose(session.prefill(ids[:length]), logits[length - 1], atol=limit)
        for position in range(len(ids) - 1, len(ids)):
            np.testing.assert_allclose(session.decode(ids[position], position), logits[position], atol=limit)
        np.testing.assert_allclose(np.concatenate([*other.logits(ids)]), logits, atol=limit)
        for cached in range(1, len(ids) - 1):
            np.testing.assert_allclose(session.prefill(ids[:-1], cached), logits[-2], atol=limit)
        count = session.reusable(3)
        with loaded.steps.turn():
            other.copy_rows(session, 0, count)
        changed = [*ids[:3], 7, 8]
        np.testing.assert_allclose(other.prefill(changed, count), expected(changed)[-1], atol=limit)
        np.testing.assert_allclose(session.decode(ids[-1], len(ids) - 1), logits[-1], atol=limit)
        rows = session.read_rows(len(ids))
        assert (rows is None) == (name == "window" or "no caches" in name)
        if rows is not None:
            third = loaded.open_session()
            with loaded.steps.turn():
                third.write_rows(rows, 0, 3)
            np.testing.assert_allclose(third.prefill(changed, 3), expected(changed)[-1], atol=limit)


@pytest.mark.parametrize(
    ("form", "capacity"),
    [
        (Form(), POSITIONS),
        (Form(cache="static"), ROWS),
        (Form(cache="static", length=4), ROWS - 3),
        (Form(cache="none", length=16), 16),
    ],
)
def test_the_capacity_is_that_of_the_graph(form: Form, capacity: int, tmp_path: Path) -> None:
    with closing(engine(form, tmp_path)) as loaded:
        assert loaded.capacity == capacity
        text = list(itertools.islice(itertools.cycle(IDS), capacity))
        np.testing.assert_allclose(loaded.open_session().prefill(text), expected(text)[-1], atol=1e-5)


def test_a_text_outgrows_its_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_py.engines.onnx.decoder.caches.MIN_ROWS", 2)
    text = [*IDS, *IDS, *IDS]
    with closing(engine(Form(), tmp_path)) as loaded:
        session = loaded.open_session()
        session.prefill(text[:3])
        steps = [session.decode(token, position) for position, token in enumerate(text) if position >= 3]
        np.testing.assert_allclose(steps, expected(text)[3:], atol=1e-5)


@pytest.mark.parametrize("cache", ["static", "scatter"])
def test_graphs_of_several_lengths_in_one_file(cache: str, tmp_path: Path) -> None:
    """Runs of 4 tokens, padded at the end, also up to the end of the caches; and of 1 token."""
    parts = [
        write_decoder(Form(cache=cache, length=length), tmp_path / f"{length}.onnx") for length in (4, 1)
    ]
    merged = tmp_path / "model.onnx"
    assert merge_circles.main([*map(str, parts), "-o", str(merged)]) == 0
    text = list(itertools.islice(itertools.cycle(IDS), ROWS))
    logits = expected(text)
    with closing(DecoderEngine(merged)) as loaded:
        assert loaded.capacity == ROWS
        assert [(chunk.length, chunk.start, chunk.stop) for chunk in loaded.plan(9, 2)] == [
            (4, 2, 6),
            (4, 6, 9),
        ]
        session = loaded.open_session()
        for count in (1, 3, 6, ROWS - 1, ROWS):
            np.testing.assert_allclose(session.prefill(text[:count]), logits[count - 1], atol=1e-5)
        np.testing.assert_allclose(session.prefill(text[:10], 3), logits[9], atol=1e-5)
        np.testing.assert_allclose(session.decode(text[10], 10), logits[10], atol=1e-5)
        np.testing.assert_allclose(np.concatenate([*session.logits(text)]), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "lengths"),
    [(Form(cache="static"), (4, 8, 16)), (Form(), ()), (Form(cache="static", causal=False), ())],
)
def test_drafts_are_verified_where_a_text_can_go_back(
    form: Form, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    """Caches in place keep their rows. Without a causal mask, a run of several tokens is wrong."""
    text = [*IDS, 3, 3]
    logits = expected(text)
    with closing(engine(form, tmp_path)) as loaded:
        assert loaded.verify_lengths(4) == [*lengths]
        session = loaded.open_session()
        session.prefill(text[:4])
        if lengths:
            np.testing.assert_allclose(session.verify(text[4:8], 4), logits[4:8], atol=1e-5)
            np.testing.assert_allclose(session.verify(text[6:], 6), logits[6:], atol=1e-5)
        np.testing.assert_allclose(session.decode(text[4], 4), logits[4], atol=1e-5)


@pytest.mark.parametrize("form", [Form(names=SCRAMBLED), Form(names=SCRAMBLED, cache="static")], ids=str)
def test_a_contract_says_the_roles(form: Form, tmp_path: Path) -> None:
    source, signed = write_decoder(form, tmp_path / "in.onnx"), tmp_path / "model.onnx"
    assert sign_contract.main([str(source), "-o", str(signed), "--layout", "BNTH"]) == 0
    with closing(load_engine(signed, EngineOptions()).engine) as loaded:
        logits = loaded.open_session().prefill(IDS)
        np.testing.assert_allclose(logits, expected(IDS)[-1], atol=1e-5)


def test_one_line_says_how_a_text_is_read(tmp_path: Path) -> None:
    for form, words in (
        (Form(cache="none"), "each token reads the whole text again"),
        (Form(causal=False), "reads only one token after others"),
    ):
        log: list[str] = []
        engine(form, tmp_path, log).close()
        assert words in log[-1]
        assert len(log) == 1


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(more=("pixel_values",)), r"needs the input 'pixel_values' \[batch_size, 3, 8, 8\]"),
        (Form(cache="none", causal=False), "no causal decoder"),
        (Form(length=4), "reads exactly 4 tokens"),
    ],
)
def test_what_cannot_be_run_is_named(form: Form, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        engine(form, tmp_path)
