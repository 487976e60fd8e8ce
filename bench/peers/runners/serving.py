"""The protocol of runners: requests on stdin and answers on stdout, one JSON object a line.

    {"do": "load", "model": ..., "checkpoint": ..., "precision": ..., "engine": ..., "threads": 2,
     "capacity": 1024}
        {"load": seconds until the model is ready, without importing libraries}
    {"do": "logits", "ids": [...]}
        {"logits": [...], "steps": [...]}: logits after the prompt, by prefill and with the last id decoded
        {"tokens": [...], "step_tokens": [...]}: the same two ways, the ids that follow greedily
    {"do": "prefill", "ids": [...], "seconds": 1}
        {"seconds": [...]}: time of each prefill, repeated for that many seconds, at least once
    {"do": "decode", "ids": [...], "tokens": 32, "seconds": 1}
        {"seconds": [...]}: time of each greedy step, `tokens` after each prompt, repeated for that many
        seconds, at least 8 steps
    {"do": "memory"}
        {"peak": peak resident memory in bytes, including mapped files}

The first prompt, and the first step after each prompt, are not measured.
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

FOLLOWING = 4
"""Number of ids that follow a prompt, to compare runners."""
MIN_STEPS = 8
"""The lowest number of steps for a median."""


class Runner(Protocol):
    """A loaded model and the text that it has read."""

    def prefill(self, ids: Sequence[int]) -> int:
        """Start a new text.

        Args:
            ids: Token ids.

        Returns:
            The most likely next token.
        """
        ...

    def decode(self, token: int) -> int:
        """Append a token.

        Args:
            token: Its id.

        Returns:
            The most likely next token.
        """
        ...

    def logits(self) -> np.ndarray:
        """Return the logits of the next token. A runner of an API without logits lacks this method.

        Returns:
            [V].
        """
        ...

    def prefill_time(self, length: int) -> float:
        """Measure a prefill. Only a runner that measures itself has this method.

        Args:
            length: Number of ids of the prompt.

        Returns:
            Seconds.
        """
        ...

    def decode_time(self, length: int, tokens: int) -> float:
        """Measure decode steps. Only a runner that measures itself has this method.

        Args:
            length: Number of ids of the prompt.
            tokens: Number of steps.

        Returns:
            Mean seconds of a step.
        """
        ...


def serve(load: Callable[..., Runner]) -> None:
    """Answer the requests on stdin until it ends.

    Args:
        load: Creates the runner from the fields of the request "load".
    """
    # Libraries may print to stdout: it becomes stderr for them.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    runner: Runner | None = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            match request.pop("do"):
                case "load":
                    started = time.perf_counter()
                    runner = load(**request)
                    answer: dict[str, Any] = {"load": time.perf_counter() - started}
                case "memory":
                    answer = {"peak": peak()}
                case action:
                    assert runner is not None, "load first"
                    answer = ACTIONS[action](runner, **request)
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")


def logits(runner: Runner, ids: Sequence[int]) -> dict[str, Any]:
    """Compute logits in two ways, and the ids that follow. Some runners have no logits.

    Args:
        runner: The runner.
        ids: A prompt.

    Returns:
        The answer to "logits".
    """
    answer: dict[str, Any] = {}
    for logits, tokens, first in (
        ("logits", "tokens", lambda: runner.prefill(ids)),
        ("steps", "step_tokens", lambda: (runner.prefill(ids[:-1]), runner.decode(ids[-1]))[1]),
    ):
        answer[tokens] = [first()]
        if hasattr(runner, "logits"):
            answer[logits] = runner.logits().tolist()
        while len(answer[tokens]) < FOLLOWING:
            answer[tokens].append(runner.decode(answer[tokens][-1]))
    return answer


def prefill(runner: Runner, ids: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measure prefill.

    Args:
        runner: The runner.
        ids: A prompt.
        seconds: The measuring time.

    Returns:
        The answer to "prefill".
    """
    times: list[float] = []
    if measure := getattr(runner, "prefill_time", None):  # of a runner that measures itself
        return {"seconds": [measure(len(ids))]}
    runner.prefill(ids)
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        runner.prefill(ids)
        times.append(time.perf_counter() - started)
        if stop := getattr(runner, "stop", None):  # of a runner that computes ahead
            stop()
    return {"seconds": times}


def decode(runner: Runner, ids: Sequence[int], tokens: int, seconds: float) -> dict[str, Any]:
    """Measure decode steps.

    Args:
        runner: The runner.
        ids: A prompt.
        tokens: Steps after each prompt.
        seconds: The measuring time.

    Returns:
        The answer to "decode".
    """
    times: list[float] = []
    if measure := getattr(runner, "decode_time", None):  # of a runner that measures itself
        return {"seconds": [measure(len(ids), tokens)]}
    while len(times) < MIN_STEPS or sum(times) < seconds:
        token = runner.decode(runner.prefill(ids))
        for _ in range(tokens):
            started = time.perf_counter()
            token = runner.decode(token)
            times.append(time.perf_counter() - started)
            if len(times) >= MIN_STEPS and sum(times) >= seconds:
                break
    return {"seconds": times}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"logits": logits, "prefill": prefill, "decode": decode}


def peak() -> int:
    """Return the peak resident memory. `ru_maxrss` is not used: a process inherits it from its parent.

    Returns:
        Bytes.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
