"""The command line, environments and files, without a peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers import __main__ as peers
from bench.peers import files
from bench.peers.environments import python_of, requirements_text
from bench.peers.processes import PeerFailed, kill, run_to_end, spawn
from bench.peers.variants import LLAMA_CPP, ORT_GENAI, THIS_PROJECT, Peer, Variant
from tests.bench.peers.toy import VOCABULARY

TOY = Peer("toy", "toy", converts=False, runners="tests.bench.peers")
OURS = replace(THIS_PROJECT, key="toy", converts=False, runners="tests.bench.peers")


def checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))


def test_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Peer("broken", "broken", requirements=(str(tmp_path / "no such package"),))
    ours = Variant(OURS, "int8", 8)
    monkeypatch.setattr(
        peers,
        "VARIANTS",
        [ours, Variant(TOY, "good", 8), Variant(TOY, "unloadable", 8), Variant(broken, "x", 4)],
    )
    monkeypatch.setattr(peers, "PEERS", (OURS, TOY, broken))
    checkpoint(tmp_path / "15m" / "checkpoint")
    out = tmp_path / "out.json"
    places = ["--work", str(tmp_path), "--environments", str(tmp_path / "venvs"), "--json", str(out)]
    short = ["--lengths", "4", "--tokens", "2", "--capacity", "64", "--seconds", "0.001", "--rounds", "2"]
    code = peers.main(["--shapes", "15m", *places, *short])
    printed = capsys.readouterr().out
    assert code == 0
    assert "this project int8 / toy good" in printed
    assert "broken is left out: ERROR: " in printed
    assert "toy unloadable is left out: ValueError: no such model" in printed
    report = json.loads(out.read_text())
    assert report["settings"]["rounds"] == 2
    assert report["machine"].startswith(f"{os.cpu_count()} x ")
    assert report["processor"]["cores"] == os.cpu_count()
    assert report["processor"]["instruction_sets"]
    shape = report["shapes"]["15m"]
    assert len(shape["rounds"]) == 2
    assert set(shape["failed"]) == {"broken", "toy unloadable"}
    assert {pair["measure"] for pair in shape["ratios"]} == {"prefill 4", "decode 4", "load", "memory"}
    assert not (tmp_path / "venvs" / "broken").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--capacity", "100"], "--capacity 100: give 545 for these --lengths"),
        (["--capacity", "5000"], "--capacity 5000: the models have 2048 positions"),
        (["--json", "/nowhere/x"], "/nowhere/x: no such folder"),
        (["--peers", "me"], "invalid choice: 'me'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_it_runs_by_its_path() -> None:
    folder = Path(peers.__file__).parent
    done = subprocess.run([sys.executable, folder, "--help"], capture_output=True, text=True, check=True)
    assert "usage: python -m bench.peers" in done.stdout


def test_an_environment_that_is_there_is_taken(tmp_path: Path) -> None:
    assert python_of(THIS_PROJECT, tmp_path, tmp_path / "log") == sys.executable
    place = tmp_path / LLAMA_CPP.key
    place.mkdir()
    (place / "wanted.txt").write_text(requirements_text(LLAMA_CPP, "torch"))
    assert python_of(LLAMA_CPP, tmp_path, tmp_path / "log", "torch") == str(place / "bin" / "python")
    assert "-DGGML_NATIVE=ON" in requirements_text(LLAMA_CPP, "torch")
    assert requirements_text(ORT_GENAI, "torch==1") != requirements_text(ORT_GENAI, "torch==2")


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = Variant(Peer("none", "none"), "int8", 8)
    with pytest.raises(PeerFailed, match=r"No module named .*exit code 1"):
        files.model_of(variant, sys.executable, tmp_path / "15m" / "checkpoint", 64, tmp_path / "log")
    assert list((tmp_path / "15m").iterdir()) == []

    def interrupted(command: list[str], *_: object) -> None:
        Path(command[-3], "half").write_text("half")  # FOLDER PRECISION CAPACITY
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "run_to_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.model_of(variant, sys.executable, tmp_path / "15m" / "checkpoint", 64, tmp_path / "log")
    assert list((tmp_path / "15m").iterdir()) == []


def test_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def write(command: list[str], *_: object) -> None:
        folders.append(Path(command[-4]))  # FOLDER PRECISION CAPACITY FORM
        (folders[-1] / "model.tflite").write_bytes(bytes(7))

    monkeypatch.setattr(files, "run_to_end", write)
    variant = Variant(THIS_PROJECT, "int8", 8, "litert")
    for _ in range(2):
        model = files.model_of(variant, sys.executable, tmp_path / "15m" / "checkpoint", 64, tmp_path / "log")
        assert model == tmp_path / "15m" / "this_project-int8-tflite-64" / "model.tflite"
        assert files.size_of(model) == 7
    assert len(folders) == 1
    files.remove("15m", tmp_path, ["llama_cpp"])
    assert model.is_file()
    files.remove("15m", tmp_path, ["this_project", "llama_cpp"])
    assert not model.parent.exists()
    assert files.model_of(Variant(TOY, "good", 8), "", tmp_path / "x", 64, tmp_path / "log") == tmp_path / "x"


def test_the_reason_is_the_last_error(tmp_path: Path) -> None:
    code = "import sys; print('error: first'); print('Error: no room'); print('bye'); sys.exit(3)"
    with pytest.raises(PeerFailed, match=r"^Error: no room \(exit code 3; .*log\)$"):
        run_to_end([sys.executable, "-c", code], tmp_path / "log")


def test_a_process_takes_its_own_with_it(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    process = spawn([sys.executable, "-c", code], tmp_path / "log", pipe=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = Path("/proc") / process.stdout.readline().strip()
    kill(process)
    deadline = time.monotonic() + 5
    while (
        grandchild.exists() and "Z" not in (grandchild / "stat").read_text() and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert not grandchild.exists() or "Z" in (grandchild / "stat").read_text()
