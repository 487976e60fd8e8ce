"""Running a filter as its command does: from a file to a file, in this process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from o2o import formats
from o2o.model import Model


class Command:
    """`command(model, "--flag")` is the filtered model; `command.refusal(...)` is (exit code, message)."""

    def __init__(self, module: str, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.main: Callable[[list[str]], int] = importlib.import_module(f"o2o.filters.{module}").main
        self.directory = directory
        self.capture = capture
        self.said = ""

    def run(self, model: Model, *arguments: str) -> tuple[int, Path]:
        source, target = self.directory / "in.circle", self.directory / "out.circle"
        target.unlink(missing_ok=True)
        formats.save(model, source)
        code = self.main([*arguments, str(source), "-o", str(target)])
        captured = self.capture.readouterr()
        assert captured.out == ""
        self.said = captured.err
        return code, target

    def __call__(self, model: Model, *arguments: str) -> Model:
        code, target = self.run(model, *arguments)
        assert code == 0, self.said
        result = formats.load(target)
        assert formats.dumps(result) == target.read_bytes(), "reading and writing it changes it"
        return result

    def refusal(self, model: Model, *arguments: str) -> tuple[int, str]:
        code, target = self.run(model, *arguments)
        assert code != 0
        assert not target.exists()
        assert self.said.count("\n") == 1
        return code, self.said.split(": ", 1)[1].strip()


@pytest.fixture
def command(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The filter that the test's file is named after (`test_gc.py`: `gc`)."""
    return Command(request.path.stem.removeprefix("test_"), tmp_path, capsys)
