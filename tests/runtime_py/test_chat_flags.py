"""The flags of a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from o2o.cli.arguments import Parser
from o2o.errors import UsageError
from runtime_py.chat_flags import add_chat_flags, chat_options


def options(*argv: str) -> dict[str, Any]:
    parser = Parser()
    add_chat_flags(parser)
    return chat_options(parser.parse_args(argv))


def test_defaults() -> None:
    nothing = {"system": None, "tools": None, "documents": None, "template": None, "template_args": {}}
    assert options() == options("--chat") == nothing


def test_all(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function"}]')
    documents = tmp_path / "documents.json"
    documents.write_text("[]")
    chosen = options(
        *("--chat", "--system", "Be kind.", "--tools", str(tools), "--documents", str(documents)),
        *("--template", "rag", "--template-arg", "enable_thinking=false", "--template-arg", "date=1 May"),
        *("--template-arg", "x=a=b", "--template-arg", 'y={"z": [1]}', "--template-arg", "empty="),
    )
    assert chosen == {
        "system": "Be kind.",
        "tools": [{"type": "function"}],
        "documents": [],
        "template": "rag",
        "template_args": {
            "enable_thinking": False,
            "date": "1 May",
            "x": "a=b",
            "y": {"z": [1]},
            "empty": "",
        },
    }


@pytest.mark.parametrize("flag", ["--system", "--template", "--template-arg"])
def test_without_chat(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} needs --chat$"):
        options(flag, "x=1")


@pytest.mark.parametrize("flag", ["--tools", "--documents"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "is not a JSON list of objects"),
        (b'["x"]', "is not a JSON list of objects"),
        (b"[", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[" * 100_000, "is not JSON: "),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_no_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "list.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((SystemExit, UsageError)) as error:
        options("--chat", flag, str(path))
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize("value", ["x", "=1", "a b=1", "1=2"])
def test_a_variable_without_a_name(capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises((SystemExit, UsageError)) as error:
        options("--chat", "--template-arg", value)
    assert f"{value!r} is not NAME=JSON" in str(error.value) + capsys.readouterr().err
