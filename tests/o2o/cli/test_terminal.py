"""A terminal shows control characters of names and texts as text. Pipes and files get the bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from o2o.cli.terminal import escaped
from tests.conftest import ROOT
from tests.runtime_py.tokenizers_on_disk import write_sentencepiece
from tests.runtime_py.toy import Toy

ESC, BIDI = "\x1b[31mred\x1b]0;title\x07", "\u202eabc\u2066"


def on_terminal(*command: object, stdin: str = "") -> str:
    """What a command writes to a terminal, with its line feeds as the terminal shows them."""
    main, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    os.close(terminal)
    assert process.stdin
    process.stdin.write(stdin.encode())
    process.stdin.close()
    output = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(main)
    process.wait(timeout=60)
    return output.decode().replace("\r\n", "\n")


def through_pipes(*command: object) -> tuple[bytes, bytes]:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ESC, r"\x1b[31mred\x1b]0;title\x07"),
        (BIDI, r"\u202eabc\u2066"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x9b1m\x7f\x00\x08\r", r"\x9b1m\x7f\x00\x08\x0d"),
        ("héllo 你好 🙂 \\x1b", "héllo 你好 🙂 \\x1b"),
    ],
)
def test_only_control_characters_change(text, expected):
    assert escaped(text) == expected
    assert escaped(escaped(text)) == expected


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a folder with a hostile name, whose chat template shouts escape sequences."""
    folder = tmp_path / f"p{ESC}{BIDI}"
    folder.mkdir()
    write_sentencepiece(folder)
    (folder / "model.tflite").write_bytes(Toy(vocab=380, capacity=64).file)
    template = "{{ raise_exception('no' + messages[0].content) }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_error_messages(package):
    (package / "model.tflite").write_bytes(b"no model")
    command = ["-m", "runtime_py.run", package]
    shown = on_terminal(*command)
    assert "\x1b" not in shown
    assert escaped(str(package)) in shown
    out, err = through_pipes(*command)
    assert (out, str(package).encode() in err) == (b"", True)


def test_prompts_answers_and_templates(package):
    prompt = f"a dog{ESC}"
    command = ["-m", "runtime_py.run", package, "--prompt", prompt, "--max-new-tokens", 2]
    shown = on_terminal(*command)
    assert f"prompt: {escaped(prompt)}\n" in shown
    assert "\x1b" not in shown
    out, _ = through_pipes(*command)
    assert out.startswith(f"prompt: {prompt}\n".encode())
    shown = on_terminal("-m", "runtime_py.run", package, "--chat", stdin=f"hi{BIDI}{ESC}\n")
    assert f"nohi{escaped(BIDI + ESC)}" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_names_of_tensors(tmp_path):
    name = b"evil\x1b[2Jnames"
    file = tmp_path / "model.tflite"
    toy = Toy().file_without_contract
    assert b"present_key_0" in toy
    file.write_bytes(toy.replace(b"present_key_0", name))
    command = ["-m", "o2o", "inspect", file]
    shown = on_terminal(*command)
    assert r"evil\x1b[2Jnames" in shown
    assert "\x1b" not in shown
    assert name in through_pipes(*command)[0]


def test_bars_and_errors_of_a_terminal(tmp_path):
    script = """
import sys
from o2o.cli import command
from o2o.cli.progress import progress

def body():
    with progress("copy\\x1b[0m", 2) as advance:
        advance(1)
    print("done\\x1b[1m")
    print("err\\x1b[1m", file=sys.stderr)
    raise RuntimeError("why\\x1b[1m")

code = command.run("test", body, debug=True)
print(code, type(sys.stdout).__name__)
"""
    shown = on_terminal("-c", script)
    assert r"copy\x1b[0m:   0%" in shown
    assert "\r" in shown, "the bar moves the cursor"
    for text in (r"done\x1b[1m", r"err\x1b[1m", r"RuntimeError: why\x1b[1m", "1 TextIOWrapper"):
        assert text in shown
    out, err = through_pipes("-c", script)
    assert out == b"done\x1b[1m\n1 TextIOWrapper\n"
    assert b"err\x1b[1m\n" in err
