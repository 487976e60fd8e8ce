"""`o2o chat` is `o2o run --chat`."""

from __future__ import annotations

import pytest

from runtime_py import chat, run


def test_the_flags_are_those_of_run() -> None:
    args = chat.parser().parse_args(["package", "--system", "Be brief.", "--top-k", "3"])
    same = run.parser().parse_args(["package", "--chat", "--system", "Be brief.", "--top-k", "3"])
    assert args == same


def test_its_help_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    text = chat.parser().format_help()
    assert "--stream" not in text
    assert "read messages from stdin" in " ".join(text.split())
    assert chat.main(["/no/such/package"]) != 0
    assert "/no/such/package" in capsys.readouterr().err
