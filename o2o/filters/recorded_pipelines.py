"""The pipelines that a model's history records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from o2o.cli.pipelines import Pipeline
from o2o.errors import ModelError

STDIN = "-"
MERGED = "merged"  # the key of an entry that is one input of a merge
LOWERED, RAISED = "lower.litert.py", "raise.circle.py"


@dataclass(frozen=True)
class Input:
    """A file that no recorded filter wrote.

    Attributes:
        name: Its name; made up, except for a file that was merged as it was.
        fingerprint: Its fingerprint (`o2o.formats.fingerprint`); None if it is not recorded.
    """

    name: str
    fingerprint: str | None


@dataclass
class Recorded:
    """The pipelines of a history.

    Attributes:
        pipelines: The pipelines, in the order in which they run.
        inputs: The files that they read and none of them writes.
    """

    pipelines: list[Pipeline] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)


def recorded_pipelines(
    history: Sequence[Mapping[str, Any]], output: str, given: Collection[str] = ()
) -> Recorded:
    """Return the pipelines that a history records.

    Args:
        history: The entries of a model, the oldest first (`o2o.history`).
        output: The name of the model's file.
        given: Fingerprints of files to begin with, which may be results of the first filters.

    Returns:
        The pipelines.

    Raises:
        ModelError: The history is empty or damaged.
    """
    if not history:
        raise ModelError("it has no history: no filter changed it, or the history was removed")
    recorded = Recorded()
    try:
        stages, source = _chain(history, output, recorded, given)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"its history is damaged: {error!r}") from error
    recorded.pipelines.append(Pipeline(stages, source, output))
    names = [file.name for file in recorded.inputs]
    names += [str(pipeline.output) for pipeline in recorded.pipelines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelError(f"its history has two files of the name {twice[0]}, so it cannot be one script")
    return recorded


def _chain(
    history: Sequence[Mapping[str, Any]], output: str, recorded: Recorded, given: Collection[str]
) -> tuple[list[list[str]], str | None]:
    """The commands of a history, and the file that the first of them reads with `<`."""
    begins = [index for index, entry in enumerate(history) if entry.get("input") in given]
    history = history[begins[-1] :] if begins else history
    stages: list[list[str]] = []
    source: str | None = None
    merged: list[Mapping[str, Any]] = []
    for entry in history:
        if MERGED in entry:
            merged.append(entry)
            continue
        command = [str(entry["filter"]), *map(str, entry["arguments"])]
        if merged:
            for operand in merged:
                if operand[MERGED] == STDIN:
                    stages, source = _operand(operand, recorded, given)
                else:
                    _add_operand(operand, recorded, given)
            command[1:1] = [str(operand[MERGED]) for operand in merged]
            merged = []
        elif not stages:
            source = _input_name(history, output)
            recorded.inputs.append(Input(source, entry["input"]))
        stages.append(command)
    return stages, source


def _operand(
    operand: Mapping[str, Any], recorded: Recorded, given: Collection[str]
) -> tuple[list[list[str]], str | None]:
    """The commands whose result is piped into a merge."""
    if operand["history"]:
        return _chain(operand["history"], "stdin.circle", recorded, given)
    recorded.inputs.append(Input("stdin_.circle", None))
    return [], "stdin_.circle"


def _add_operand(operand: Mapping[str, Any], recorded: Recorded, given: Collection[str]) -> None:
    """Add the pipeline that wrote a merged file, or the file to the inputs."""
    name = str(operand[MERGED])
    if not operand["history"]:
        recorded.inputs.append(Input(name, None))
        return
    stages, source = _chain(operand["history"], name, recorded, given)
    recorded.pipelines.append(Pipeline(stages, source, name))


def _input_name(history: Sequence[Mapping[str, Any]], output: str) -> str:
    """A name for the input of a chain: `decode_.circle` for `decode.circle`."""
    path = PurePath(output)
    formats = {LOWERED: ".circle", RAISED: ".tflite"}
    suffix = next((formats[e["filter"]] for e in history if e.get("filter") in formats), path.suffix)
    return f"{path.stem}_{suffix}"
