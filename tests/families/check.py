"""One case: its packages of each format, run by each engine, against transformers."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, redirect_stderr
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from runtime_py.package import Package
from tests.families.cases import CONTEXT, Case
from tests.families.results import Result, Run

LIMIT = 1e-4
"""The largest difference of float32 logits, as a part of the standard deviation of transformers' logits.

Greedy tokens may differ where transformers' two best logits are closer."""
INT8_LIMIT = 0.2
"""The same for int8, as a root mean square."""
ROADS = (
    ("circle", "none", ("litert", "onnx")),
    ("tflite", "none", ("litert",)),
    ("onnx", "none", ("onnx",)),
    ("circle", "dynamic_int8", ("litert", "onnx")),
)
"""(format, recipe, engines)"""


def check(case: Case, log: Path) -> Result:
    """Convert a case's model to each format and compare its logits. Imports torch.

    Args:
        case: The case.
        log: A file that receives the messages of all commands.

    Returns:
        The result; failures are a part of it.
    """
    import torch

    from export.rotary import fix_frequencies
    from tests.compiled import compiled_once
    from tests.families import checkpoint, reference
    from tests.families.conversion import convert
    from tests.families.fusion import fused

    torch.set_num_threads(1)
    started = time.monotonic()
    result = Result(case.name)
    with (
        tempfile.TemporaryDirectory(prefix="families-") as temporary,
        open(log, "w") as messages,
        redirect_stderr(messages),
    ):
        os.dup2(messages.fileno(), 2)  # commands inherit it
        folder = Path(temporary)
        model = checkpoint.write(folder / "checkpoint", case.model_type, case.fields)
        fix_frequencies(model, CONTEXT)  # transformers would take those of each text's own length
        texts = reference.texts(model, case.prompts, case.steps)
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        with compiled_once(folder):
            for format, recipe, engines in ROADS:
                road = format if recipe == "none" else f"{format} int8"
                try:
                    package = folder / road.replace(" ", "-")
                    lengths = None if format == "onnx" else case.prefill_lengths
                    file = convert(folder / "checkpoint", package, format, recipe, lengths)
                    if road == "circle":
                        result.fused, result.attentions = fused(file, layers * case.attentions)
                except BaseException as error:
                    result.runs += [Run(road, engine, error=_reason(error, log)) for engine in engines]
                    continue
                for engine in engines:
                    result.runs.append(_run(file, road, engine, texts, recipe, case.buckets))
    result.seconds = time.monotonic() - started
    return result


def check_in_child(case: Case, log: Path, sender: Connection) -> None:
    """Check a case and send the result.

    Args:
        case: The case.
        log: See `check`.
        sender: Takes one `Result`.
    """
    try:
        result = check(case, log)
    except Exception as error:
        result = Result(case.name, error=f"{type(error).__name__}: {error}".splitlines()[0])
    sender.send(result)


def _run(file: Path, road: str, engine: str, texts: Sequence, recipe: str, buckets: list[int]) -> Run:
    run = Run(road, engine)
    try:
        compared = _compare(file, engine, texts, buckets)
        run.largest, run.rms = max(item[0] for item in compared), max(item[1] for item in compared)
        if recipe != "none":
            run.error = "" if run.rms <= INT8_LIMIT else f"rms of {run.rms:.2g} deviations"
        elif not run.largest <= LIMIT:
            worst = max(compared, key=lambda item: item[0])
            run.error = f"off by {run.largest:.2g} deviations after a prompt of {worst[3]}, {worst[4]}"
        elif other := next((item[2] for item in compared if item[2]), ""):
            run.error = other
    except BaseException as error:
        run.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return run


def _compare(
    file: Path, engine: str, texts: Sequence, buckets: list[int]
) -> list[tuple[float, float, str, int, str]]:
    """For each text: largest difference and root mean square in deviations, another choice, the place."""
    options = {"buckets": buckets} if engine == "litert" else {}
    results = []
    with (
        closing(Package.load(file).engine(threads=1, engine=engine, disk_cache=None, **options)) as loaded,
        closing(loaded.open_session()) as session,
    ):
        for text in texts:
            deviation = text.logits.std()
            logits = [session.prefill(text.tokens[: text.prompt])]
            for position in range(text.prompt, len(text.tokens)):
                logits.append(session.decode(text.tokens[position], position))
            difference = (np.stack(logits).astype(np.float64) - text.logits) / deviation
            off = np.abs(difference).max(axis=1)
            off = np.where(np.isfinite(off), off, np.inf)
            step = int(off.argmax())
            results.append(
                (
                    float(off.max()),
                    float(np.sqrt((difference**2).mean())),
                    _other_choice(np.stack(logits), text.logits, text.prompt),
                    text.prompt,
                    f"step {step}" if step else "prefill",
                )
            )
    return results


def _other_choice(ours: np.ndarray, theirs: np.ndarray, prompt: int) -> str:
    """The first greedy choice that differs, unless transformers' two best logits are closer than `LIMIT`."""
    near = LIMIT * theirs.std()
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        second, best = np.sort(b)[-2:]
        if a.argmax() != b.argmax() and best - second > near:
            return f"another token at step {step} after a prompt of {prompt}"
    return ""


def _reason(error: BaseException, log: Path) -> str:
    """The last line of the log, where a command says why it failed, or the exception."""
    sys.stderr.flush()
    lines = log.read_text(errors="replace").strip().splitlines()
    if isinstance(error, Exception) and type(error).__name__ == "ModelError" and lines:
        return f"{lines[-1]} ({error})"
    return f"{type(error).__name__}: {error}"
