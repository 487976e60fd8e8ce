"""What every runner does: read commands on stdin, one JSON object a line, and answer on stdout the same way.

    {"do": "load", "model": ..., "checkpoint": ..., "precision": ..., "engine": ..., "threads": 2,
     "capacity": 1024}
        {"load": seconds until the model is ready, libraries imported already}
    {"do": "logits", "ids": [...]}
        {"logits": [...], "steps": [...]}: those behind the prompt, and again with its last id decoded
    {"do": "prefill", "ids": [...], "seconds": 1}
        {"seconds": [...]}: of each prompt begun anew, as many as fit those seconds, at least one
    {"do": "decode", "ids": [...], "tokens": 32, "seconds": 1}
        {"seconds": [...]}: of each step that feeds the best token, at most so many behind a prompt, as many
        as fit those seconds, at least 8
    {"do": "memory"}
        {"peak": bytes that the process had resident at most, mapped files among them}

Something done for the first time is not measured, be it a prompt or the first step behind one.
An error is answered by {"error": "one line"}. The end of stdin ends the runner.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LEAST = 8
"""Steps that a median is of."""


class Runner(Protocol):
    """A model that is loaded, and the text it has read."""

    def prefill(self, ids: Sequence[int]) -> int:
        """Forget all and read these ids; the best next one."""
        ...

    def decode(self, token: int) -> int:
        """Read one more; the best next one."""
        ...

    def logits(self) -> np.ndarray:
        """[V], behind what was read last."""
        ...


def serve(load: Callable[..., Runner]) -> None:
    """Carry out what stdin says until it ends. load: makes the runner of the "load" command's fields."""
    # Libraries print what they like: only answers may reach the one who asks.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    runner: Runner | None = None
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        try:
            match asked.pop("do"):
                case "load":
                    started = time.perf_counter()
                    runner = load(**asked)
                    answer: dict[str, Any] = {"load": time.perf_counter() - started}
                case "memory":
                    answer = {"peak": peak()}
                case action:
                    assert runner is not None, "load first"
                    answer = ACTIONS[action](runner, **asked)
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")


def logits(runner: Runner, ids: Sequence[int]) -> dict[str, Any]:
    runner.prefill(ids)
    whole = runner.logits().tolist()
    runner.prefill(ids[:-1])
    runner.decode(ids[-1])
    return {"logits": whole, "steps": runner.logits().tolist()}


def prefill(runner: Runner, ids: Sequence[int], seconds: float) -> dict[str, Any]:
    runner.prefill(ids)
    times: list[float] = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        runner.prefill(ids)
        times.append(time.perf_counter() - started)
    return {"seconds": times}


def decode(runner: Runner, ids: Sequence[int], tokens: int, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    while len(times) < LEAST or sum(times) < seconds:
        token = runner.decode(runner.prefill(ids))
        for _ in range(tokens):
            started = time.perf_counter()
            token = runner.decode(token)
            times.append(time.perf_counter() - started)
            if len(times) >= LEAST and sum(times) >= seconds:
                break
    return {"seconds": times}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"logits": logits, "prefill": prefill, "decode": decode}


def peak() -> int:
    """Bytes. Not `ru_maxrss`, which a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
