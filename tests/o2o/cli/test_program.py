"""The name of the running command: the spelling that the user typed."""

from __future__ import annotations

import pytest

from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.cli.program import called_as, program_name
from o2o.errors import UsageError


def test_the_innermost_spelling_counts() -> None:
    assert program_name("run.py") == "run.py"
    with called_as("o2o"):
        with called_as("o2o run"):
            assert program_name("run.py") == "o2o run"
        assert program_name("run.py") == "o2o"
    assert program_name("run.py") == "run.py"


def test_usage_lines_and_messages_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UsageError("no such flag")

    with called_as("o2o run"):
        assert Parser(prog="run.py").format_usage().startswith("usage: o2o run ")
        assert command.run("run.py", fail) == 2
    assert capsys.readouterr().err == "o2o run: no such flag\n"
    assert Parser(prog="run.py").format_usage().startswith("usage: run.py ")
