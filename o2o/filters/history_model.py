"""`history.model.py`."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o import __version__, formats
from o2o.cli import pipelines
from o2o.cli.text import counted
from o2o.errors import ModelError, UsageError
from o2o.filters import pipeline
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.filters.recorded_pipelines import MERGED, Recorded, recorded_pipelines
from o2o.formats.fingerprint import fingerprint
from o2o.model import Model
from o2o.streams.temporary import temporary_folder


class HistoryModel(Filter):
    """Print the pipelines that made a model, ready to paste; --replay runs them again and compares.

        model.circle -- history.model.py   =>   fuse.attention.py < decode_.circle > decode.circle
                                                merge.circles.py prefill.circle decode.circle \\
                                                  | gc.py > model.circle

    Each filter that changes a model records in it: the filter's name, its arguments, and a fingerprint of its
    input. Only merge.circles.py records the names of files. Another input is named after the result, such as
    decode_.circle for decode.circle, and a comment has its fingerprint.
    With --replay INPUT ..., this version of the filters runs the pipelines, and the result is compared with
    the model. The inputs may be in any order: fingerprints identify them. Weights that bind.weights.py added
    are not compared: a fingerprint covers graphs, small constants, signatures, metadata and history.
    The output is text, or JSON with --json. No model is written. The exit code is 1 if the results differ.
    Refused: a model without a history; a missing input; an input that the history does not have.
    """

    name = "history.model.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "history.model.py model.circle --replay prefill_.circle decode_.circle"
    check_help = None
    writes_model = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print the history as JSON")
        parser.add_argument(
            "--replay", metavar="INPUT", nargs="+", help="run the pipelines on these files, and compare"
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.json and args.replay:
            raise UsageError("--json prints the history, --replay runs it: give one of them")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        (source,) = sources = self.open(args)
        (model,) = self.read(sources)
        if args.json:
            text = json.dumps(model.history, indent=2) + "\n"
        else:
            text = _replay(model, args.replay) if args.replay else _script(model)
        source.finish()
        self.print(text, args)


def _script(model: Model) -> str:
    """The pipelines as a shell script, with the fingerprints of the inputs as comments."""
    recorded = recorded_pipelines(model.history, f"model.{model.format}")
    lines = [
        f"# {file.name} is {file.fingerprint or 'recorded by its name only'}" for file in recorded.inputs
    ]
    versions = sorted({str(entry.get("version")) for entry in _entries(model.history)} - {__version__})
    if versions:
        lines.append(f"# Recorded by version {', '.join(versions)}; this is version {__version__}.")
    return "".join(f"{line}\n" for line in lines) + pipelines.render(recorded.pipelines)


def _entries(history: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries of all filters in the order in which they ran."""
    for entry in history:
        if MERGED in entry:
            yield from _entries(entry["history"])
        else:
            yield entry


def _replay(model: Model, files: Sequence[str]) -> str:
    """Run the pipelines on `files` in a temporary folder. Raises ModelError if the result differs."""
    fingerprints = {file: fingerprint(formats.load(file)) for file in files}
    recorded = recorded_pipelines(model.history, f"model.{model.format}", fingerprints.values())
    places = _places(recorded, fingerprints)
    with temporary_folder() as folder:
        for name, file in places.items():
            folder.joinpath(name).symlink_to(Path(file).resolve())
        with contextlib.chdir(folder):  # histories have the names of files without folders
            code = pipeline.run(recorded.pipelines, quiet=True)
        if code:
            raise ModelError("the replay failed, as the line above says")
        result = formats.load(folder.joinpath(str(recorded.pipelines[-1].output)))
        count = sum(len(each.stages) for each in recorded.pipelines)
        replayed, result.history = result.history, model.history
        if fingerprint(result) != fingerprint(model):
            raise ModelError(f"the replay gives another model: {_first_difference(model.history, replayed)}")
    return f"the replay of {counted(count, 'filter')} gives the same model\n"


def _places(recorded: Recorded, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The file for each input: by fingerprint, else by name, else the only one that is left."""
    files = list(fingerprints)
    places: dict[str, str] = {}
    for one in recorded.inputs:
        same = [file for file, digest in fingerprints.items() if digest == one.fingerprint]
        named = [file for file in files if one.fingerprint is None and Path(file).name == one.name]
        if match := same or named:
            places[one.name] = match[0]
    missing = [one for one in recorded.inputs if one.name not in places]
    rest = [file for file in files if file not in places.values()]
    if len(missing) == len(rest) == 1 and missing[0].fingerprint is None:
        return {**places, missing[0].name: rest[0]}
    if missing:
        known = f" ({missing[0].fingerprint})" if missing[0].fingerprint else ""
        raise UsageError(f"--replay: none of the files is the input {missing[0].name}{known}")
    if rest:
        raise UsageError(f"--replay: {rest[0]} is no input of the recorded pipelines")
    return places


def _first_difference(recorded: Sequence[Mapping[str, Any]], replayed: Sequence[Mapping[str, Any]]) -> str:
    """Which filter gave another result than in the recorded run."""
    before: Mapping[str, Any] | None = None
    for old, new in zip(_entries(recorded), _entries(replayed), strict=False):
        if old["input"] != new["input"]:
            name = "an input" if before is None else f"the result of {before['filter']}"
            return f"{name}, which {old['filter']} reads, differs"
        before = old
    return f"the result of {before['filter'] if before else 'the last filter'} differs"


main = HistoryModel.main
