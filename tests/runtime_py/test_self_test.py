"""An engine that computes wrongly is noticed: perturbed weights, a wrong KV row, swapped heads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o.errors import ModelError
from runtime_py import self_test
from runtime_py.engines.registry import installed
from runtime_py.package import Package
from runtime_py.run import main
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import write_onnx

pytestmark = pytest.mark.skipif("onnx" not in installed(), reason="ONNX Runtime is not installed")
TOY: dict[str, Any] = {"prefill_length": 0, "cached_lengths": [8], "capacity": 40}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(Toy(**TOY).file)
    assert self_test.main([str(path)]) == 0
    return path


@pytest.fixture
def onnx(tmp_path: Path, model: Path) -> Package:
    """The same model on another engine, with the answers of the first."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    path = write_onnx(Toy(**TOY), folder / "model.onnx")
    answers = dataclasses.replace(self_test.read(model), digest=self_test.model_digest(path))
    self_test.write(answers, folder / self_test.FILE)
    return Package.load(folder)


def test_both_engines_pass(model, onnx):
    for package, engine in ((Package.load(model.parent), "litert"), (onnx, "onnx")):
        passed = package.self_test()
        assert (passed.engine, passed.steps) == (engine, 9)
        assert passed.error < 1e-5 < passed.limit
        assert str(passed).startswith(f"self-test passed on {engine} (float32")


def test_answers_are_those_of_the_model(model):
    answers, toy = self_test.read(model), Toy(**TOY)
    assert len(answers.prompt) == 32
    assert list(answers.tokens) == toy.greedy(answers.prompt, 8)
    text = [*answers.prompt, *answers.tokens]
    for step in answers.steps:
        logits = toy.logits(text[: step.position + 1])
        np.testing.assert_allclose(step.logits, logits[list(step.tokens)], rtol=1e-4, atol=1e-4)
        assert step.tokens[0] == logits.argmax()


Damage = Callable[[np.ndarray, int, int], None]
"""Changes a KV cache [S, K, H] after the rows from one position to another were written."""


def swap_heads(cache: np.ndarray, start: int, stop: int) -> None:
    cache[start:stop] = cache[start:stop, ::-1].copy()


def shift_rows(cache: np.ndarray, start: int, stop: int) -> None:
    cache[start:stop] = np.roll(cache[start:stop], 1, axis=0) if stop - start > 1 else 0


def miss_a_row(cache: np.ndarray, start: int, stop: int) -> None:
    if stop == 33:  # one step of decode
        cache[stop - 1] = 0


class WrongEngine:
    """An engine whose KV caches are damaged after each call."""

    def __init__(self, engine: Any, damage: Damage) -> None:
        self._engine, self._damage = engine, damage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def open_session(self) -> Any:
        session, damage = self._engine.open_session(), self._damage

        def damaged(call: Callable[..., np.ndarray], is_decode: bool) -> Callable[..., np.ndarray]:
            def wrapped(tokens: Any, position: int = 0) -> np.ndarray:
                logits = call(tokens, position)
                stop = position + 1 if is_decode else len(tokens)
                for slot, cache in session.kv_caches.items():
                    if slot[0] == "key":
                        damage(cache[0].transpose(1, 0, 2), position, stop)
                return logits

            return wrapped

        session.prefill = damaged(session.prefill, False)
        session.decode = damaged(session.decode, True)
        return session


@contextlib.contextmanager
def loaded(package: Package) -> Iterator[Any]:
    with contextlib.closing(package.engine()) as engine:
        yield engine


@pytest.mark.parametrize("damage", [swap_heads, shift_rows, miss_a_row])
def test_damaged_caches_are_noticed(onnx, damage):
    answers = self_test.read(onnx.model)
    with loaded(onnx) as engine, pytest.raises(ModelError) as caught:
        self_test.check(WrongEngine(engine, damage), "onnx", answers)
    message = str(caught.value)
    assert message.startswith("self-test failed on onnx (float32), step ")
    assert "expected" in message
    assert "\n" not in message


def test_perturbed_weights_are_noticed(tmp_path, onnx):
    toy = Toy(**TOY)
    toy.lm_head[0] *= 1.05
    onnx.model = write_onnx(toy, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="was changed after the answers in"):
        self_test.read(onnx.model.rename(onnx.directory / "model.onnx"))
    answers = json.loads((onnx.directory / self_test.FILE).read_text())
    onnx.model = onnx.directory / "model.onnx"
    answers["digest"] = self_test.model_digest(onnx.model)
    (onnx.directory / self_test.FILE).write_text(json.dumps(answers))
    with pytest.raises(
        ModelError, match=r"self-test failed on onnx \(float32\), step 1 of 9: after position 15"
    ):
        onnx.self_test()
    with pytest.raises(ModelError, match="self-test failed"):
        Package.load(onnx.directory, self_test=True).engine()


def test_logits_that_are_not_finite_are_a_failure(model):
    answers = self_test.read(model)
    model.write_bytes(Toy(**TOY, damage=np.nan).file)
    with (
        loaded(Package.load(model.parent)) as engine,
        pytest.raises(ModelError, match=r"step 1 of 9: .* are NaN"),
    ):
        self_test.check(engine, "litert", answers)


def test_a_near_tie_is_no_failure(model):
    answers = self_test.read(model)
    (first, *others) = answers.steps
    tie = dataclasses.replace(
        first,
        tokens=(first.tokens[1], first.tokens[0], *first.tokens[2:]),
        logits=(first.logits[1], first.logits[0], *first.logits[2:]),
    )
    with loaded(Package.load(model.parent)) as engine:
        self_test.check(engine, "litert", dataclasses.replace(answers, steps=(tie, *others)))


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_small_capacities(tmp_path, capacity):
    path = tmp_path / "model.tflite"
    path.write_bytes(Toy(prefill_length=0, cached_lengths=[1 + capacity // 2], capacity=capacity).file)
    self_test.main([str(path)])
    assert Package.load(path).self_test().error < 1e-6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"version": 1}',
        b'{"version": "x"}',
        b'{"version": null}',
        b'{"version": 1e999}',
    ],
)
def test_damaged_answers(model, content):
    (model.parent / self_test.FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"self_test.json is damaged \(.*python -m runtime_py.self_test"):
        self_test.read(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", []), ("prompt", "ab"), ("tokens", [None]), ("split", {}), ("split", -1), ("prompt", [])],
)
def test_damaged_values(model, key, value):
    path = model.parent / self_test.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError, match="is damaged"):
        self_test.read(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deviation", 1e999),
        ("deviation", -1),
        ("logits", [float("nan")] * 8),
        ("logits", [1.0]),
        ("tokens", []),
    ],
)
def test_a_step_that_would_let_everything_pass(model, key, value):
    path = model.parent / self_test.FILE
    content = json.loads(path.read_text())
    content["steps"][3][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"is damaged \(a step has wrong numbers\)"):
        self_test.read(model)


def test_a_prompt_that_does_not_fit_is_not_the_fault_of_the_engine(model):
    path = model.parent / self_test.FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"prompt": content["prompt"] * 2}))
    with pytest.raises(ModelError, match=r"are those of another model$"):
        Package.load(model.parent).self_test()


def test_wrong_ids_in_answers(model):
    path = model.parent / self_test.FILE
    step = {"position": 15, "deviation": 1, "logits": [0.0]}
    steps = [step | {"tokens": [token]} for token in (10**6, -20)]
    for change in (
        {"steps": [*steps] * 4 + steps[:1]},
        {"steps": [steps[1]] * 9},
        {"prompt": [10**6]},
        {"prompt": []},
        {"split": 99},
        {"tokens": [-1] * 8},
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ModelError, match=r"self-test failed|is damaged"):
            Package.load(model.parent).self_test()
        assert self_test.main([str(model)]) == 0


def test_other_answers(model):
    path = model.parent / self_test.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(ModelError, match="was written by a newer version"):
        self_test.read(model)
    path.unlink()
    with pytest.raises(ModelError, match=r"has no self_test\.json with known answers"):
        self_test.read(model)


def test_the_flag(model, capsys):
    capsys.readouterr()
    assert main([str(model.parent), "--self-test"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("self-test passed on litert")
    assert err == ""
    path = model.parent / self_test.FILE
    answers = json.loads(path.read_text())
    answers["steps"][3]["logits"][0] += 1
    path.write_text(json.dumps(answers))
    assert main([str(model.parent), "--self-test"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("run: self-test failed on litert (float32), step 4 of 9: after position 33 token")
    assert err.count("\n") == 1
