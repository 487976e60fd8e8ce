"""What only shows in real processes: pipes between filters, closed streams, signals, files that change."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from o2o import formats
from o2o.filters import gc
from tests.o2o.graphs import Graph, decoder, weights
from tests.processes import spawn

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
    assert outcome.stderr in (b"", b"gc.py: nothing to remove\n")


def test_a_failure_in_the_middle_leaves_the_rest_to_say_so(place: Path) -> None:
    outcome = shell("o2o rename.io input nope=a < in.circle | o2o gc > out.circle", place)
    assert outcome.returncode == 1
    lines = sorted(outcome.stderr.decode().splitlines())
    assert lines[0] == "gc.py: <stdin> is empty (did the command before it in the pipe fail?)"
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


# --- more than a pipe holds, or a filter keeps -----------------------------------------------------------


def long_model() -> bytes:
    """18 MB, of which a pipe never holds more than one."""
    graph = Graph("main")
    x = graph.input("x", [1, 1024])
    for index in range(2):
        graph.output(graph.fc(x, graph.constant(f"w{index}", weights(2200, 1024, seed=index)), f"y{index}"))
    return formats.dumps(graph.model())


LONG = long_model()


@pytest.fixture(scope="session")
def long(shared_directory: Path) -> Path:
    """The file of the long model. Not to be changed."""
    path = shared_directory / "long.circle"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_bytes(LONG)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an old `out.circle`, and nothing else in it."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "out.circle").write_bytes(b"old")
    return tmp_path / "output"


def assert_as_it_was(folder: Path) -> None:
    assert os.listdir(folder) == ["out.circle"], "litter"
    assert (folder / "out.circle").read_bytes() == b"old"


@contextlib.contextmanager
def started(*arguments: object, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """A filter in a process of its own; killed when the test is done."""
    command = [PYTHON, "-m", "o2o", *map(str, arguments)]
    pipe = subprocess.PIPE
    with spawn(command, stdin=stdin, stdout=pipe, stderr=pipe) as process:
        yield process


def write_half(process: subprocess.Popen[bytes]) -> None:
    """Two thirds of the long model; when this returns half has been read, so that it is being written."""
    assert process.stdin is not None
    process.stdin.write(LONG[: len(LONG) // 3 * 2])
    process.stdin.flush()


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Exit code, what came on stdout, what it said."""
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.read()
    said = process.stderr.read().decode()
    return process.wait(20), out, said


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, -15, ""),
        (signal.SIGINT, 130, "gc.py: interrupted\n"),
        (signal.SIGHUP, -1, ""),
    ],
)
def test_a_filter_that_is_killed_while_it_writes(
    number: signal.Signals, code: int, message: str, folder: Path
) -> None:
    with started("gc", "-o", folder / "out.circle") as process:
        write_half(process)
        assert_as_it_was(folder)
        process.send_signal(number)
        assert end(process) == (code, b"", message)
    assert_as_it_was(folder)


def test_a_stage_that_is_killed_in_the_middle_of_a_pipe(folder: Path) -> None:
    with (
        started("gc") as middle,
        started(
            "rename.io", "input", "x=z", "-o", folder / "out.circle", stdin=middle.stdout.fileno()
        ) as last,  # type: ignore[union-attr]
    ):
        assert middle.stdout is not None
        middle.stdout.close()
        write_half(middle)
        middle.kill()
        code, out, said = end(last)
    assert (code, out) == (1, b"")
    assert said == "rename.io.py: <stdin>: truncated (was the command that wrote it interrupted?)\n"
    assert_as_it_was(folder)


@pytest.mark.parametrize("there", [0, 20, 500, 5_000, 1 << 20, len(LONG) - 1])
def test_what_was_before_in_the_pipe_ends_early(there: int, folder: Path) -> None:
    with started("gc", "-o", folder / "out.circle") as process:
        assert process.stdin is not None
        process.stdin.write(LONG[:there])
        process.stdin.close()
        code, out, said = end(process)
    assert (code, out, said.count("\n")) == (1, b"", 1)
    assert ("truncated" in said) == (there > 0)
    assert ("is empty (did the command before it in the pipe fail?)" in said) == (there == 0)
    assert_as_it_was(folder)


# --- no room ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["{}", "- < {}", "- < <(cat {})"], ids=["file", "stdin", "pipe"])
@pytest.mark.parametrize("target", ["-o out.circle", "> new.circle"], ids=["file", "stdout"])
def test_a_file_that_may_not_be_so_long(
    source: str, target: str, long: Path, place: Path, folder: Path
) -> None:
    source = source.format(shlex.quote(str(long)))
    outcome = shell(f"cd output; ulimit -f 1000; o2o gc {source} {target}; echo $?", place)
    assert outcome.stdout == b"1\n"
    where = "out.circle: " if "-o" in target else ""
    complaint = "File too large: the limit of `ulimit -f` or of the file system is reached: write elsewhere"
    assert outcome.stderr.decode() == f"gc.py: {where}{complaint}\n"
    (folder / "new.circle").unlink(missing_ok=True)
    assert_as_it_was(folder)


def in_a_small_disk(script: str, place: Path) -> subprocess.CompletedProcess[bytes]:
    """Run `script` where the folder `disk` is a file system of 2 MB; skips where that cannot be made."""
    (place / "disk").mkdir()
    make = "mount -t tmpfs -o size=2m none disk"
    if subprocess.run(["unshare", "-rm", "sh", "-c", make], cwd=place, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    prelude = f'o2o() {{ {PYTHON} -m o2o "$@"; }}; cd {place}; {make}; '
    return subprocess.run(["unshare", "-rm", "bash", "-c", prelude + script], capture_output=True, timeout=60)


def test_a_disk_without_room_is_told_before_it_is_full(long: Path, place: Path) -> None:
    outcome = in_a_small_disk(
        f"echo old > disk/out.circle; o2o gc {long} -o disk/out.circle; echo $?; cat disk/*; ls -A disk",
        place,
    )
    assert outcome.stdout == b"1\nold\nout.circle\n"
    said = outcome.stderr.decode()
    room = r"out\.circle takes 18,[0-9,]+ bytes, .*/disk has 2,[0-9,]+ free: make room, or write elsewhere"
    assert re.fullmatch(f"gc\\.py: {room}\n", said)


def test_a_disk_that_becomes_full(long: Path, place: Path) -> None:
    """On stdout nobody can know before; and a pipe may need to be kept where temporary files go."""
    outcome = in_a_small_disk(
        f"o2o gc {long} > disk/new; echo $?; rm disk/new; export TMPDIR=disk; "
        f"cat {long} | o2o merge.circles - > /dev/null; echo $?",
        place,
    )
    assert outcome.stdout == b"1\n1\n"
    full, temporary = outcome.stderr.decode().splitlines()
    assert full == "gc.py: No space left on device: make room, or write elsewhere"
    assert temporary == (
        f"merge.circles.py: <stdin> must be stored temporarily, but {place / 'disk'} has no room (No space "
        "left on device): read a file, or set TMPDIR to another folder"
    )


def test_a_disk_that_nobody_may_write_to(place: Path) -> None:
    outcome = in_a_small_disk("mount -o remount,ro disk; o2o gc in.circle -o disk/out; echo $?", place)
    assert (outcome.stdout, outcome.stderr) == (b"1\n", b"gc.py: disk/out: Read-only file system\n")


# --- files that change meanwhile -------------------------------------------------------------------------


@contextlib.contextmanager
def half_written(path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A filter that has read the graph of the model in `path`, and is in the middle of its data."""
    path.write_bytes(LONG)
    with started("gc", path) as process:
        assert process.stdout is not None
        first = process.stdout.peek(1)  # type: ignore[attr-defined]
        assert first
        yield process


def test_an_input_that_vanishes_or_is_replaced(tmp_path: Path) -> None:
    """It is read to its end as it was."""
    path, other = tmp_path / "in.circle", tmp_path / "other"
    with half_written(path) as process:
        code, expected, _ = end(process)
    assert (code, len(expected) > 18_000_000) == (0, True)
    with half_written(path) as process:
        path.unlink()
        assert end(process)[:2] == (0, expected)
    with half_written(path) as process:
        other.write_bytes(b"something else")
        other.replace(path)
        assert end(process)[:2] == (0, expected)


def test_an_input_that_is_cut_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "in.circle"
    with half_written(path) as process:
        os.truncate(path, 5_000_000)
        code, _, said = end(process)
    assert (code, said) == (1, f"gc.py: {path}: the file became shorter while it was read\n")


def test_a_reader_that_has_seen_enough(long: Path, place: Path) -> None:
    """Every stage before it ends as by SIGPIPE, in silence."""
    outcome = shell(
        f"o2o gc {long} | o2o rename.io input x=z | o2o gc | head -c 100 > start; echo ${{PIPESTATUS[@]}}",
        place,
    )
    assert (outcome.stdout, outcome.stderr) == (b"141 141 141 0\n", b"")
    assert (place / "start").stat().st_size == 100


def test_an_early_failure_ends_the_stages_before_it(long: Path, place: Path) -> None:
    outcome = shell(f"o2o gc {long} | o2o rename.io input nope=z > new; echo ${{PIPESTATUS[@]}}", place)
    assert outcome.stdout == b"141 2\n"
    assert outcome.stderr.decode().startswith("rename.io.py: no input is called 'nope'")
    assert outcome.stderr.count(b"\n") == 1


COMMANDS_ON_ITSELF = [
    "o2o gc f -o f",
    "o2o gc < f -o f",
    "cat f | o2o gc -o f",
    "o2o gc f -o link",
    "o2o gc link -o f",
]


@pytest.mark.parametrize("script", COMMANDS_ON_ITSELF)
def test_the_output_is_the_input(script: str, place: Path) -> None:
    (place / "in.circle").rename(place / "f")
    (place / "link").symlink_to("f")
    assert gc.main([str(place / "f"), "-o", str(place / "expected")]) == 0
    outcome = shell(f"{script}; cmp f expected", place)
    assert (outcome.returncode, outcome.stdout) == (0, b"")
    assert (place / "link").is_symlink()
    assert sorted(os.listdir(place)) == ["expected", "f", "link"]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("nowhere/out", "nowhere/out: No such file or directory"),
        ("folder", "folder: Is a directory: give a file in it, such as model.circle"),
        ("file/out", "file/out: Not a directory"),
        ("closed/out", "closed/out: Permission denied"),
    ],
)
def test_no_place_for_the_output(target: str, complaint: str, place: Path) -> None:
    (place / "folder").mkdir()
    (place / "file").touch()
    (place / "closed").mkdir(mode=0o555)
    script = f"o2o gc in.circle -o {target}; echo $?"
    if "closed" in target and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    outcome = shell(script, place)
    assert (outcome.stdout, outcome.stderr.decode()) == (b"1\n", f"gc.py: {complaint}\n")
    assert not any((place / name).is_file() for name in ("nowhere", "folder", "closed"))
    assert (place / "file").read_bytes() == b""
