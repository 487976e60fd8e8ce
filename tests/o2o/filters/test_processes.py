"""What only shows in real processes: pipes between filters, closed streams, signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from o2o import formats
from tests.o2o.graphs import decoder

PYTHON = sys.executable


@pytest.fixture
def place(tmp_path: Path) -> Path:
    formats.save(decoder(), tmp_path / "in.circle")
    return tmp_path


def shell(script: str, place: Path) -> subprocess.CompletedProcess[bytes]:
    """Run `script` in bash, where `o2o` is this Python's `-m o2o`; every part of a pipe counts."""
    prelude = f'set -o pipefail; o2o() {{ {PYTHON} -m o2o "$@"; }}; cd {place}; '
    return subprocess.run(["bash", "-c", prelude + script], capture_output=True, timeout=60, check=False)


def test_a_pipe_of_filters(place: Path) -> None:
    outcome = shell(
        "o2o downcast.input_ids < in.circle | o2o rename.io input past_key_0=cache | o2o gc > out.circle",
        place,
    )
    assert (outcome.returncode, outcome.stdout) == (0, b"")
    model = formats.load(place / "out.circle")
    assert [entry["filter"] for entry in model.history] == ["downcast.input_ids.py", "rename.io.py", "gc.py"]
    assert [value.name for value in model.graphs[1].inputs] == ["input_ids", "cache_position", "cache"]


def test_a_reader_that_goes_away(place: Path) -> None:
    outcome = shell("o2o gc < in.circle | true; echo ${PIPESTATUS[0]}", place)
    assert outcome.stdout.strip() in (b"141", b"0"), "0 when the pipe took it all before it closed"
    assert outcome.stderr in (b"", b"gc.py: everything is needed\n")


def test_a_failure_in_the_middle_leaves_the_rest_to_say_so(place: Path) -> None:
    outcome = shell("o2o rename.io input nope=a < in.circle | o2o gc > out.circle", place)
    assert outcome.returncode == 1
    lines = sorted(outcome.stderr.decode().splitlines())
    assert lines[0] == "gc.py: <stdin>: is empty (did the command before it in the pipe fail?)"
    assert lines[1].startswith("rename.io.py: no input is called 'nope'; there are: ")
    assert len(lines) == 2
    assert (place / "out.circle").read_bytes() == b""


def test_closed_streams(place: Path) -> None:
    outcome = shell("o2o gc <&-; echo $?; o2o gc < in.circle >&-; echo $? >&2", place)
    assert outcome.stdout == b"2\n"
    lines = outcome.stderr.decode().splitlines()
    assert lines[0].startswith("gc.py: no input: give a file name")
    assert lines[1].startswith("gc.py: stdout is closed")
    assert lines[2:] == ["2"]


def test_full_disk(place: Path) -> None:
    outcome = shell("o2o gc < in.circle > /dev/full; echo $?", place)
    assert outcome.stdout == b"1\n"
    assert outcome.stderr == b"gc.py: No space left on device: make room, or write elsewhere\n"
