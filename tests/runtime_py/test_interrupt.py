"""SIGINT ends the commands of `runtime_py` with one line and exit code 130, whenever it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.o2o.cli.test_interrupt import interrupted
from tests.runtime_py.toy import Toy

AFTER = [0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts take longer than the test."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "model.tflite").write_bytes(Toy(prefill_length=4, capacity=200_000).file)
    (folder / "ids.txt").write_text("1 2 3 4 5 " * 20_000)
    return folder


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("command", ["perplexity", "quality", "bench"])
def test_a_command(command: str, after: float, package: Path) -> None:
    arguments = {
        "perplexity": [package, "--ids", package / "ids.txt"],
        "quality": [package, package, "--ids", package / "ids.txt"],
        "bench": [package, "--prompts", "100000", "--contexts", "100000"],
    }
    code, message = interrupted(after, "module", f"runtime_py.{command}", *arguments[command])
    assert (code, message) == (130, f"{command}: interrupted\n")


@pytest.mark.parametrize("after", [0, 0.05, 0.1, 0.2])
def test_run_before_it_has_loaded(after: float, package: Path) -> None:
    """Later it prints what it has generated: see `test_run`. This package has no tokenizer."""
    code, message = interrupted(after, "module", "runtime_py.run", package)
    assert (code, message) in [(130, "run: interrupted\n"), (1, message)]
    assert message.count("\n") == 1
