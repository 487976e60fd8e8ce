"""Rounds, with runners that need no model."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers import rounds
from bench.peers import worker as children
from bench.peers.processes import PeerFailed
from bench.peers.rounds import Contender, Plan, correlation, measure
from bench.peers.variants import THIS_PROJECT, Peer, Variant
from bench.peers.worker import Worker
from tests.bench.peers.toy import VOCABULARY

TOY = Peer("toy", "toy", runners="tests.bench.peers")
OURS = replace(THIS_PROJECT, key="toy", runners="tests.bench.peers")


def contender(folder: Path, precision: str, seconds: float = 0, peer: Peer = TOY) -> Contender:
    variant = Variant(peer, precision, 8, str(seconds))
    return Contender(variant, sys.executable, folder, folder, 0, folder / f"{precision}.log")


def plan(folder: Path) -> Plan:
    return Plan(3, 1, [4, 80], 2, 0.001, 96, folder / "cache")


def test_each_round_measures_everyone(tmp_path: Path) -> None:
    fast, slow = contender(tmp_path, "good", 0.002), contender(tmp_path, "better", 0.02)
    messages: list[str] = []
    results = measure([fast, slow], VOCABULARY, plan(tmp_path), messages.append)
    assert results.failed == {}
    assert results.together
    assert [list(each) for each in results.rounds] == [
        ["toy good 0.002", "toy better 0.02"],
        ["toy better 0.02", "toy good 0.002"],
        ["toy good 0.002", "toy better 0.02"],
    ]
    for each in results.rounds:
        for measured in each.values():
            assert list(measured) == ["load", "prefill 4", "prefill 80", "decode 4", "decode 80", "memory"]
            assert measured["memory"] > 10e6
        # A sleep takes at least its time, on a loaded machine more: only the upper limit is certain.
        assert 0 < each["toy good 0.002"]["decode 4"] <= 1 / 0.002
        assert 0 < each["toy better 0.02"]["decode 80"] <= 1 / 0.02
    assert results.correlations == pytest.approx({"toy good 0.002": 1, "toy better 0.02": 1})


def test_who_fails_is_left_out_with_the_reason(tmp_path: Path) -> None:
    wrong = ["unloadable", "dies", "steps differ", "differs", "fails later"]
    all_ = [contender(tmp_path, "good"), *(contender(tmp_path, precision) for precision in wrong)]
    results = measure(all_, VOCABULARY, plan(tmp_path), lambda line: None)
    assert [one.variant.precision for one in results.contenders] == ["good"]
    assert all("decode 80" in each["toy good 0"] for each in results.rounds)
    reasons = {
        name.split(" ", 1)[1].removesuffix(" 0"): failure_reason
        for name, failure_reason in results.failed.items()
    }
    assert reasons["unloadable"].startswith("ValueError: no such model (")
    assert "ended by signal 6" in reasons["dies"]
    assert reasons["steps differ"].startswith("decode and prefill do not agree: correlation ")
    assert reasons["differs"].startswith("computes something else than toy good 0: correlation ")
    assert reasons["fails later"].startswith("ValueError: too long (")


def test_a_runner_without_logits_is_compared_by_ids(tmp_path: Path) -> None:
    """With this project's variant that loads the same file."""
    ours, theirs = contender(tmp_path, "good", peer=OURS), contender(tmp_path, "text")
    messages: list[str] = []
    results = measure([ours, theirs], VOCABULARY, plan(tmp_path), messages.append)
    assert results.failed == {}
    assert results.correlations[theirs.variant.name] == 1
    assert [line for line in messages if "correlation" in line] == [
        f"{one.variant.name}: correlation 1.0000 with {ours.variant.name}" for one in (ours, theirs)
    ]


def test_a_runner_that_measures_itself(tmp_path: Path) -> None:
    ours, theirs = contender(tmp_path, "good", peer=OURS), contender(tmp_path, "text measured")
    results = measure([ours, theirs], VOCABULARY, plan(tmp_path), lambda line: None)
    assert results.failed == {}
    speeds = results.rounds[0][theirs.variant.name]
    assert speeds["prefill 80"] == pytest.approx(100)
    assert speeds["decode 80"] == pytest.approx(12.5)


def test_one_at_a_time_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_free_memory", lambda: 1_000_000)
    messages: list[str] = []
    all_ = [contender(tmp_path, "good"), contender(tmp_path, "better")]
    results = measure(all_, VOCABULARY, plan(tmp_path), messages.append)
    assert not results.together
    assert any(line.endswith("they are loaded one at a time") for line in messages)
    assert all("memory" in measured for each in results.rounds for measured in each.values())


def test_a_child_is_stopped_between_answers_and_gone_after_them(tmp_path: Path) -> None:
    child = Worker("tests.bench.peers.toy", sys.executable, tmp_path / "log", tmp_path)
    child.ask("load", precision="good", engine="")
    pid = child._process.pid
    deadline = time.monotonic() + 5
    while (state := Path(f"/proc/{pid}/stat").read_text().split()[2]) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state == "T"
    child.ask("memory")
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_was_ended_is_told(tmp_path: Path) -> None:
    child = Worker("tests.bench.peers.toy", sys.executable, tmp_path / "log", tmp_path)
    os.kill(child._process.pid, signal.SIGKILL)
    with pytest.raises(PeerFailed, match="signal 9"):
        child.ask("memory")
    child.close()


def test_a_child_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "TIMEOUT", 0.05)
    child = Worker("tests.bench.peers.toy", sys.executable, tmp_path / "log", tmp_path)
    with pytest.raises(PeerFailed, match=r"no answer to 'load' in 0.05 s"):
        child.ask("load", precision="good", engine="")  # Python alone takes longer to start
    child.close()


def test_correlation() -> None:
    assert correlation([1, 2, 3, 99], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert not correlation([1, 1, 1], [1, 2, 3]) >= 0
