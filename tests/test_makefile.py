"""`make package` and `make run`: variables may hold any character, and nothing outside PACKAGE is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RECORD = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""
ODD = [
    "a b",
    "it's",
    'say "hi"',
    "$HOME",
    "a$b $(MODEL) ${PATH} $$",
    "`touch x`; touch y & | > z",
    "two\nlines",
    "-x",
    "--help",
    "~",
    "~root/x",
    "# no comment",
    "100%",
    "c:\\d",
    "*?[a]",
    "é 🙂",
    "a=b",
    "",
]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose Python records its arguments in the file `record`."""
    bin_ = tmp_path / "venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").write_text(RECORD)
    (bin_ / "python").chmod(0o755)
    (bin_ / ".ready").touch()
    return tmp_path / "venv"


def make(environment: Path, *arguments: str, **variables: str) -> list[list[str]]:
    """Run make; return the arguments of each call of Python."""
    record = environment / "record"
    definitions = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "-o", f"{environment}/bin/.ready", f"VENV={environment}", *definitions, *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "RECORD": str(record)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in record.read_text().splitlines()]


@pytest.mark.parametrize("value", ODD)
def test_any_value_arrives_as_it_is(environment: Path, value: str) -> None:
    names = (
        "MODEL",
        "PACKAGE",
        "MAX_LENGTH",
        "DTYPE",
        "FORMAT",
        "QUANTIZE",
        "PROMPT",
        "CACHE",
        "PREFILL_LENGTHS",
    )
    before = sorted(ROOT.iterdir())
    package, run = make(environment, "run", **dict.fromkeys(names, value))
    flags = "model", "package", "max-length", "dtype", "format", "quantize"
    optional = ["cache", "prefill-lengths"] if value else []
    expected = [f"--{flag}={value}" for flag in (*flags, *optional)]
    assert package == ["tinyllama/pipeline.py", "--if-changed", *expected]
    assert run == ["-m", "runtime_py.run", f"--prompt={value}", "--", value]
    assert sorted(ROOT.iterdir()) == before


def test_values_may_come_from_the_environment(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "it's $5")
    (package,) = make(environment, "package")
    assert "--model=it's $5" in package


def test_the_defaults(environment: Path) -> None:
    package, run = make(environment, "run")
    assert package[2:] == [
        "--model=tinyllama/demo/checkpoint",
        "--package=tinyllama",
        "--max-length=32",
        "--dtype=float32",
        "--format=circle",
        "--quantize=none",
    ]
    assert run == ["-m", "runtime_py.run", "--prompt=Lily picked up a flower.", "--", "tinyllama"]
