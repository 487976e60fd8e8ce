"""Self-test: known answers of a package, stored when it is built and checked on the engine that runs it.

    python -m runtime_py.self_test MODEL [-o FILE]     store the answers of this machine

`self_test.json` next to the model has a prompt of token ids, greedy tokens, and the largest logits of each
step. They come from the engine of the machine that built the package. An engine that computes wrongly on
another machine gives other logits.

The prompt is read in two parts, so that a prefill starts in the middle of a text. Then each step feeds the
stored token, not the computed one: where two tokens are about equally likely, both choices are right. The
error of a step is the root mean square of the differences of its logits, in standard deviations of its
logits. Measured for LiteRT, ONNX Runtime and onert, with the demo model and a model of 27 million parameters:

    weights                                    largest error of a step    limit
    float32, float16, weight-only int8         6e-6, other engine         `FLOAT_LIMIT`
    dynamic int8 and int4, same engine         2e-7, one machine          `SAME_ENGINE_LIMIT`
    dynamic int8 and int4, other engine        0.077                      `OTHER_ENGINE_LIMIT`

Each engine rounds dynamically quantized activations in another way. A missing KV row gave errors from 0.01 on
with float32 weights, and from 0.07 on with int8 weights.
"""

from __future__ import annotations

from o2o.streams.temporary import temporary_folder

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("self_test")

import argparse
import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.cli.text import counted
from o2o.errors import ModelError, O2oError
from o2o.streams.disk_cache import DiskCache
from runtime_py.engines.engine import Engine
from runtime_py.engines.loading import load_engine
from runtime_py.engines.model_file import external_data, file_digest
from runtime_py.engines.options import EngineOptions

FILE = "self_test.json"
VERSION = 1
PROMPT = 252
"""P where it fits: with 8 more tokens, decode crosses the edge of the first bucket, 256."""
TOKENS, TOP = 8, 8
"""Number of greedy tokens, and of logits of a step."""
FLOAT_LIMIT, SAME_ENGINE_LIMIT, OTHER_ENGINE_LIMIT = 1e-3, 0.05, 0.15
"""The largest error of a step; see the module's description."""


@dataclass(frozen=True)
class Step:
    """One prediction.

    Attributes:
        position: The position of the token that was read last.
        deviation: The standard deviation of all logits.
        tokens: The most likely token ids, the most likely first.
        logits: Their logits.
    """

    position: int
    deviation: float
    tokens: tuple[int, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class KnownAnswers:
    """The content of `self_test.json`.

    Attributes:
        engine: The engine that computed the answers.
        weight_dtype: Its name of the weights' dtype.
        digest: The SHA-256 of the model.
        prompt: Token ids [P].
        split: The number of ids in the first part of the prompt; 0 for one part.
        tokens: Greedy token ids, which follow the prompt.
        steps: The predictions after each part of the prompt and after each token but the last.
    """

    engine: str
    weight_dtype: str
    digest: str
    prompt: tuple[int, ...]
    split: int
    tokens: tuple[int, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Passed:
    """The result of a self-test without failures.

    Attributes:
        engine: The engine.
        weight_dtype: The dtype of its weights.
        steps: The number of steps.
        error: The largest error of a step.
        limit: The largest permitted error.
    """

    engine: str
    weight_dtype: str
    steps: int
    error: float
    limit: float

    def __str__(self) -> str:
        return (
            f"self-test passed on {self.engine} ({self.weight_dtype}): {counted(self.steps, 'step')}, "
            f"largest error {self.error:.1e}, limit {self.limit:g}"
        )


def compute(engine: Engine, name: str, digest: str) -> KnownAnswers:
    """Compute known answers.

    Args:
        engine: A loaded engine.
        name: Its name.
        digest: The SHA-256 of its model.

    Returns:
        The answers.

    Raises:
        ModelError: The engine fails, or logits are not finite.
    """
    count = max(1, min(TOKENS, engine.capacity // 4))
    length = max(1, min(PROMPT, engine.capacity - count))
    prompt = np.random.default_rng(0).integers(0, engine.vocab_size, length).tolist()
    split = length // 2
    tokens: list[int] = []
    steps = []
    for position, logits in _predictions(engine, prompt, split, tokens):
        order = np.argsort(-logits, kind="stable")[:TOP].tolist()
        values = tuple(round(float(logits[token]), 6) for token in order)
        steps.append(Step(position, round(float(logits.std()), 6), tuple(order), values))
        if position >= length - 1:
            tokens.append(order[0])
        if len(tokens) == count:
            break
    return KnownAnswers(name, engine.weight_dtype, digest, tuple(prompt), split, tuple(tokens), tuple(steps))


def check(engine: Engine, name: str, answers: KnownAnswers) -> Passed:
    """Compare an engine with known answers.

    Args:
        engine: A loaded engine.
        name: Its name.
        answers: The answers for its model.

    Returns:
        The largest error.

    Raises:
        ModelError: An error is above the limit; the message names engine, step, expected and actual.
    """
    dynamic_limit = SAME_ENGINE_LIMIT if name == answers.engine else OTHER_ENGINE_LIMIT
    limit = dynamic_limit if "dynamic" in answers.weight_dtype else FLOAT_LIMIT
    ids = {*answers.prompt, *answers.tokens, *(token for step in answers.steps for token in step.tokens)}
    read = len(answers.prompt) + len(answers.tokens) - 1
    if not 0 <= min(ids) <= max(ids) < engine.vocab_size or read > engine.capacity:
        raise ModelError(f"self-test failed on {name}: the answers in {FILE} are those of another model")
    errors: list[float] = []
    try:
        predictions = _predictions(engine, answers.prompt, answers.split, answers.tokens)
        for step, (_, logits) in zip(answers.steps, predictions, strict=False):
            error = _error(step, logits)
            if not error <= limit:
                raise ModelError(_difference(step, logits) + f"; error {error:.2g}, limit {limit:g}")
            errors.append(error)
    except O2oError as error:
        raise ModelError(
            f"self-test failed on {name} ({engine.weight_dtype}), step {len(errors) + 1} of "
            f"{len(answers.steps)}: {error}: the engine computes wrongly here; try another --engine "
            f"(the answers are of {answers.engine})"
        ) from error
    largest = max(errors)
    return Passed(name, engine.weight_dtype, len(answers.steps), largest, limit)


def _predictions(
    engine: Engine, prompt: Sequence[int], split: int, tokens: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """The position and the logits of each step. `tokens` may grow while they are read."""
    with contextlib.closing(engine.open_session()) as session:
        if split:
            yield split - 1, session.prefill(prompt[:split])
        yield len(prompt) - 1, session.prefill(prompt, split)
        for position in range(len(prompt), len(prompt) + TOKENS):
            yield position, session.decode(tokens[position - len(prompt)], position)


def _error(step: Step, logits: np.ndarray) -> float:
    """The error of a step. A token that is more likely than all expected ones counts by its distance."""
    expected, actual = np.array(step.logits), logits[list(step.tokens)].astype(np.float64)
    above = max(0.0, float(logits.max()) - max(float(actual.max()), step.logits[0]))
    scale = step.deviation or 1.0
    return max(float(np.sqrt(np.mean((actual - expected) ** 2))), above) / scale


def _difference(step: Step, logits: np.ndarray) -> str:
    actual = logits[list(step.tokens)]
    worst = int(np.abs(actual - np.array(step.logits)).argmax())
    highest = int(logits.argmax())
    return (
        f"after position {step.position} token {step.tokens[worst]} has logit {actual[worst]:.5g}, expected "
        f"{step.logits[worst]:.5g}; the most likely token is {highest}, expected {step.tokens[0]}"
    )


def model_digest(model: Path) -> str:
    """Return a digest of a model, including the external data of an ONNX file.

    Args:
        model: The model's file.

    Returns:
        The SHA-256 in hexadecimal, of the digests of its files if there are several.

    Raises:
        OSError: A file cannot be read.
    """
    digests = [file_digest(file) for file in (model, *external_data(model))]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if len(digests) > 1 else digests[0]


def read(model: Path) -> KnownAnswers:
    """Read the known answers next to a model.

    Args:
        model: The model's file.

    Returns:
        The answers, which belong to this model.

    Raises:
        ModelError: There are none, they are damaged, or the model was changed after them.
        OSError: A file cannot be read.
    """
    path = model.parent / FILE
    again = f"python -m runtime_py.self_test {model} stores those of this machine"
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {FILE} with known answers: {again}")
    try:
        answers = _parse(json.loads(path.read_bytes()))
    except KeyError as error:
        raise ModelError(f"{path} is damaged (it has no {error}): {again}") from error
    except (TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged (a value has a wrong type): {again}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}): {again}") from error
    if answers is None:
        raise ModelError(f"{path} was written by a newer version: {again}")
    if model_digest(model) != answers.digest:
        raise ModelError(f"{model} was changed after the answers in {path} were computed: {again}")
    return answers


def _parse(content: Any) -> KnownAnswers | None:
    """None for a newer version. Other content raises KeyError, TypeError, AttributeError, ValueError."""
    if int(content["version"]) > VERSION:
        return None
    steps = tuple(
        Step(
            int(step["position"]),
            float(step["deviation"]),
            tuple(map(int, step["tokens"])),
            tuple(map(float, step["logits"])),
        )
        for step in content["steps"]
    )
    answers = KnownAnswers(
        str(content["engine"]),
        str(content["weight_dtype"]),
        str(content["digest"]),
        tuple(map(int, content["prompt"])),
        int(content["split"]),
        tuple(map(int, content["tokens"])),
        steps,
    )
    if not answers.tokens or len(steps) != len(answers.tokens) + bool(answers.split):
        raise ValueError("steps are missing")
    if not 0 <= answers.split < len(answers.prompt) or len(answers.tokens) > TOKENS:
        raise ValueError("the prompt or the number of tokens is wrong")
    if not all(map(_is_sound, steps)):
        raise ValueError("a step has wrong numbers")
    return answers


def _is_sound(step: Step) -> bool:
    numbers_are_finite = all(map(math.isfinite, step.logits)) and 0 <= step.deviation < math.inf
    return numbers_are_finite and 0 < len(step.tokens) == len(step.logits)


def write(answers: KnownAnswers, path: Path) -> None:
    """Write known answers. The file appears when it is complete.

    Args:
        answers: The answers.
        path: The file.

    Raises:
        OSError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps({"version": VERSION, **asdict(answers)}) + "\n")
    os.replace(part, path)


def store(model: Path, path: Path, options: EngineOptions) -> KnownAnswers:
    """Load a model, compute its answers and write them.

    Args:
        model: A model's file.
        path: The file for the answers.
        options: How to load the model.

    Returns:
        The answers.

    Raises:
        ModelError: No engine can run the model.
        OSError: A file cannot be read or written.
    """
    loaded = load_engine(model, options)
    with contextlib.closing(loaded.engine) as engine:
        answers = compute(engine, loaded.name, model_digest(model))
    write(answers, path)
    return answers


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runtime_py.self_test",
        description="Store known answers of a model: greedy tokens and logits, which --self-test checks.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="model.circle, model.tflite or model.onnx of a package")
    add("-o", "--output", metavar="FILE", type=Path, help=f"default: {FILE} next to the model")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _run(args: argparse.Namespace) -> None:
    output = args.output or args.model.parent / FILE
    # Packed weights go into a file beside the model, which is mapped: memory stays free of them.
    with temporary_folder(output.absolute().parent, ".self_test-") as folder:
        options = EngineOptions(measures=False, speculate=False, disk_cache=DiskCache(folder))
        answers = store(args.model, output, options)
    steps = counted(len(answers.steps), "step")
    command.report("self_test", f"wrote {output}: {steps} on {answers.engine} ({answers.weight_dtype})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    return command.run("self_test", lambda: _run(_parser().parse_args(argv)), debug="--debug" in argv)


if __name__ == "__main__":
    sys.exit(main())
