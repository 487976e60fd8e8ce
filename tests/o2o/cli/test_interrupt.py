"""SIGINT ends every command with one line and exit code 130, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from o2o import formats
from tests.conftest import ROOT
from tests.o2o.graphs import linear

BIN = Path(sys.executable).parent

# The tests may run where SIGINT is ignored, as in the background of a shell: children would inherit that.
# A command is ready when it has called `exit_on_interrupt`. What Python does before is not ours.
PREAMBLE = """
import os, runpy, signal, sys
from o2o.cli import interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
ready, kind, name, *arguments = sys.argv[1:]
sys.argv[:] = [name, *arguments]
sys.path[0] = os.path.dirname(name) if kind == "script" else os.getcwd()
def exit_on_interrupt(program, install=interrupt.exit_on_interrupt):
    install(program)
    os.write(int(ready), b".")
interrupt.exit_on_interrupt = exit_on_interrupt
if kind == "script":
    runpy.run_path(name, run_name="__main__")
else:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
"""

CONSOLE_SCRIPT = "import sys\nfrom o2o.__main__ import script\nsys.exit(script())\n"


def interrupted(after: float, *command: object, cwd: Path = ROOT) -> tuple[int, str]:
    """Exit code and stderr of a command that gets SIGINT `after` seconds after it is ready."""
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE, str(writer), *map(str, command)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(writer)
    with child, open(reader, "rb") as ready:
        try:
            assert ready.read(1) == b".", child.stderr and child.stderr.read()
            time.sleep(after)
            child.send_signal(signal.SIGINT)
            assert child.stderr is not None
            message = child.stderr.read()
            return child.wait(60), message
        finally:
            child.kill()


@pytest.mark.parametrize("after", [0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
def test_a_filter_that_waits_for_its_input(after: float, tmp_path: Path) -> None:
    """While it imports modules, while it reads stdin, at any moment."""
    script = tmp_path / "gc.py"
    script.write_text(CONSOLE_SCRIPT)
    (tmp_path / "out.circle").write_bytes(b"old")
    code, message = interrupted(after, "script", script, "-o", "out.circle", cwd=tmp_path)
    assert (code, message) == (130, "gc.py: interrupted\n")
    assert (tmp_path / "out.circle").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["gc.py", "out.circle"]


@pytest.mark.parametrize("after", [0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
def test_a_filter_that_works(after: float, tmp_path: Path) -> None:
    """It may have ended by then: completely."""
    formats.save(linear(), tmp_path / "in.circle")
    arguments = ["module", "o2o", "gc", tmp_path / "in.circle", "-o", tmp_path / "out.circle"]
    code, message = interrupted(after, *arguments)
    assert message.count("\n") == 1
    if code == 0:
        assert message == "gc.py: nothing to remove\n"
        assert formats.load(tmp_path / "out.circle")
    else:
        assert code == 130
        assert message.endswith(": interrupted\n")


# An extension module may crash, or print a traceback, when KeyboardInterrupt is raised in its import.
SLOW = """
import os, time
try:
    time.sleep(1.3)
except KeyboardInterrupt:
    os.write(2, b"raised in an import")
"""

BUSY = """
import sys, time
from o2o.cli import interrupt
if __name__ == "__main__":
    interrupt.exit_on_interrupt("busy")
from o2o.cli import command

class Deaf:
    def __del__(self):
        time.sleep(0.5)

def destructor():
    while True:
        Deaf()

def converts():
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise ValueError("something went wrong") from None

def cleans_up():
    try:
        time.sleep(60)
    finally:
        time.sleep(60)

def foreign_code():
    import ctypes
    ctypes.CDLL(None).sleep(60)

def imports():
    import slow
    time.sleep(60)

def silenced():
    import ctypes
    from o2o.cli.silence_stderr import silenced_stderr
    with silenced_stderr():
        ctypes.CDLL(None).sleep(60)

def goes_on():
    interrupt.survive_interrupts()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(interrupt.DEADLINE + 0.5)
        return 7

sys.exit(command.run("busy", globals()[sys.argv[1]]))
"""


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    (tmp_path / "busy.py").write_text(BUSY)
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path / "busy.py"


def test_bodies_that_do_not_end_by_themselves(busy: Path) -> None:
    """At the same time: most of it is waiting."""
    bodies = ["destructor", "converts", "cleans_up", "foreign_code", "silenced", "imports"]
    with ThreadPoolExecutor(len(bodies)) as threads:
        results = threads.map(lambda body: interrupted(0.7, "script", busy, body), bodies)
    assert dict(zip(bodies, results, strict=True)) == dict.fromkeys(bodies, (130, "busy: interrupted\n"))


def test_a_body_that_goes_on(busy: Path) -> None:
    assert interrupted(0.7, "script", busy, "goes_on") == (7, "")


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """`nohup` and the background of a shell: a command goes on."""
    formats.save(linear(), tmp_path / "in.circle")
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'o2o', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, "gc", "-", "-o", tmp_path / "out.circle"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, message = child.communicate((tmp_path / "in.circle").read_bytes(), timeout=60)
    assert (child.returncode, message) == (0, b"gc.py: nothing to remove\n")


@pytest.mark.parametrize("after", [0, 0.05])
@pytest.mark.parametrize(
    "command",
    [
        ("module", "export", "missing", "-o", "out"),
        ("module", "runtime_py.run", "missing"),
        ("module", "runtime_py.bench", "missing"),
        ("module", "runtime_py.quality", "missing", "missing"),
        ("module", "o2o.docs", "/dev/null/missing"),
        ("script", ROOT / "tinyllama" / "tinyllama.py", "--mode", "prefill", "--checkpoint", "missing"),
        ("script", ROOT / "tinyllama" / "verify.py", "--checkpoint_path", "missing"),
    ],
    ids=lambda command: str(command[1]).removeprefix(f"{ROOT}/"),
)
def test_other_commands_while_they_import(command: tuple[object, ...], after: float) -> None:
    """They would fail by themselves a moment later, which is one line, too."""
    code, message = interrupted(after, *command)
    assert message.count("\n") == 1, message
    if code != 130:
        assert code in (1, 2)
        assert "missing" in message
    else:
        assert message.endswith(": interrupted\n")


SILENCED = """
import sys, time
from o2o.cli import command, interrupt, silence_stderr
interrupt.exit_on_interrupt("silenced")
def body():
    with silence_stderr.silenced_stderr():
        time.sleep(60)
def stuck():
    with silence_stderr.silenced_stderr():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
sys.exit(command.run("silenced", stuck if "stuck" in sys.argv else body))
"""


@pytest.mark.parametrize("body", ["", "stuck"])
def test_the_line_appears_while_stderr_is_silenced(body: str, tmp_path: Path) -> None:
    script = tmp_path / "silenced.py"
    script.write_text(SILENCED)
    assert interrupted(0.3, "script", script, body) == (130, "silenced: interrupted\n")
