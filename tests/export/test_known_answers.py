"""A package gets known answers when it is built. A model that cannot be run is no obstacle."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import known_answers, package_builder
from export.known_answers import FILE, store_known_answers
from export.package_builder import PackageBuilder
from runtime_py import self_test
from tests.runtime_py.toy import Toy


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(Toy().file)
    return path


def test_a_child_process_stores_them(model: Path) -> None:
    assert store_known_answers(model) is None
    answers = self_test.read(model)
    assert (answers.engine, len(answers.tokens)) == ("litert", 2)
    assert FILE == self_test.FILE


def test_the_reason_why_there_are_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.write_bytes(b"no model")
    reason = store_known_answers(model)
    assert reason is not None
    assert str(model) in reason
    assert "\n" not in reason
    monkeypatch.setattr(known_answers, "available_memory", lambda: 1000)
    assert store_known_answers(model) == "running the model takes 0.20 GB of memory, 0.0 MB are free"
    assert not (model.parent / FILE).exists()


def test_answers_of_an_earlier_model_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(steps: object, folder: Path) -> None:
        (folder / "model.circle").write_text("a model")

    monkeypatch.setattr(package_builder.shell, "run", run)
    checkpoint, package, lines = tmp_path / "checkpoint", tmp_path / "package", []
    checkpoint.mkdir()
    package.mkdir()
    builder = PackageBuilder(checkpoint, package, 16, None, lines.append)
    for reason, content in ((None, "new"), ("no engine", None)):

        def store(model: Path, reason: str | None = reason) -> str | None:
            if reason is None:
                (model.parent / FILE).write_text("new")
            return reason

        monkeypatch.setattr(known_answers, "store_known_answers", store)
        (package / FILE).write_text("old")
        builder._build([], "model.circle", 0)
        assert (package / FILE).exists() == (content is not None)
        if content is not None:
            assert (package / FILE).read_text() == content
    assert "the package has no known answers for --self-test: no engine" in lines
