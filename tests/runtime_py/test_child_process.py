"""The protocol between a process and its children."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o.errors import ModelError
from runtime_py.child_process import ChildFailed, run_module

HEADER = "import os, sys\nfrom o2o.errors import ModelError\nfrom runtime_py.child_process import exit_with\n"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a module with this body, `sys.argv[1]` being its argument."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(body: str, **options) -> str:
        (tmp_path / "a_child.py").write_text(f"{HEADER}def body():\n    {body}\nexit_with(body)\n")
        return run_module("a_child", "argument", **options)

    return run


def test_returns_what_the_child_prints(child):
    assert child("print(sys.argv[1], os.environ['COLOUR'])", environment={"COLOUR": "red"}) == (
        "argument red\n"
    )


def test_a_model_error_stays_one(child):
    with pytest.raises(ModelError, match=r"^the model is round$"):
        child("print('a log line', file=sys.stderr); raise ModelError('the model is round')")


def test_other_errors_are_failures_of_the_child(child):
    with pytest.raises(ChildFailed, match=r"^the disk is full$") as error:
        child("raise OSError('the disk is full')")
    assert error.value.returncode == 1
    with pytest.raises(ChildFailed, match=r"^ZeroDivisionError: division by zero$"):
        child("1 / 0")


def test_a_child_that_a_signal_ends(child):
    with pytest.raises(ChildFailed, match=r"^exit status -6$") as error:
        child("os.abort()")
    assert error.value.returncode == -6
