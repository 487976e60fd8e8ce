"""`o2o remember`: later commands do not compute the prompt again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime_py import cache, chat, run
from runtime_py.package import Package
from runtime_py.remember import main

SYSTEM = "you are a parrot who answers in one word\n"


@pytest.fixture
def package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy package with a chat template, and a disk cache of its own."""
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folder, tmp_path / "toy")
    (tmp_path / "system.txt").write_text(SYSTEM)
    return tmp_path / "toy"


@pytest.fixture
def system(tmp_path: Path) -> str:
    return str(tmp_path / "system.txt")


def test_as_a_system_message_and_as_text(package: Path, system: str, capsys: pytest.CaptureFixture) -> None:
    def prompt_tokens(command: object, *args: str) -> int:
        assert command.main([str(package), "--stats", "--max-new-tokens", "2", *args]) == 0  # type: ignore[attr-defined]
        line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("prefill"))
        return int(line.split("(")[1].split()[0])

    text = SYSTEM.strip()
    chatting = ["--system", text, "--prompt", "hello"]
    before = prompt_tokens(chat, *chatting), prompt_tokens(run, "--prompt", f"{text} and more")
    assert main([str(package), system]) == 0
    forms = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert forms == ["system", "text"]
    after = prompt_tokens(chat, *chatting), prompt_tokens(run, "--prompt", f"{text} and more")
    assert before[0] - after[0] >= len(text)
    assert before[1] - after[1] >= len(text)
    cache.main(["list"])
    assert capsys.readouterr().out.count("system.txt as") == 2
    cache.main(["clear"])
    assert prompt_tokens(chat, *chatting) == before[0]


def test_in_the_package(package: Path, system: str, capsys: pytest.CaptureFixture) -> None:
    assert main([str(package), system, "--as", "text", "--in-package"]) == 0
    assert f": {package}/prompt_cache/" in capsys.readouterr().out
    with Package.load(package) as loaded, loaded.session() as session:
        loaded.generate(SYSTEM, session, max_new_tokens=1)
        assert session.runs[0].start >= len(SYSTEM.strip())


def test_numbers_for_a_model_without_a_tokenizer(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "ids.txt").write_text("1 2 3 4 5 6 7 8 9 10\n")
    model = str(package / "model.tflite")
    assert main([model, str(tmp_path / "ids.txt"), "--tokenizer", "ids", "--as", "text"]) == 0
    assert capsys.readouterr().out.startswith("text: 10 tokens, ")


@pytest.mark.parametrize(
    ("content", "args", "message", "code"),
    [
        ("\n", [], "is empty", 2),
        ("ab", ["--as", "text"], "fewer than 8", 2),
        ("a" * 900, ["--as", "text"], "700", 2),
        (b"\xff\xfe", [], "is not UTF-8", 2),
        (None, [], "No such file", 2),
    ],
)
def test_wrong_files(
    package: Path,
    system: str,
    capsys: pytest.CaptureFixture,
    content: str | bytes | None,
    args: list[str],
    message: str,
    code: int,
) -> None:
    if content is None:
        Path(system).unlink()
    else:
        Path(system).write_bytes(content.encode() if isinstance(content, str) else content)
    assert main([str(package), system, *args]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_package_without_a_template(package: Path, system: str, capsys: pytest.CaptureFixture) -> None:
    (package / "chat_template.jinja").unlink()
    assert main([str(package), system]) == 0
    assert capsys.readouterr().out.startswith("text: ")
    assert main([str(package), system, "--as", "system"]) == 1
    assert "chat template" in capsys.readouterr().err
