"""Runs a pipeline of filters in one process. It writes what the same pipe of processes writes, byte for byte.

A filter hands its model to the next one in memory (`o2o.formats.handover`). The weights stay in the first
filter's input until the last filter writes them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from o2o import filters, formats, garbage_collection, streams
from o2o.cli import command
from o2o.cli.arguments import suggestion
from o2o.cli.pipelines import Pipeline
from o2o.cli.program import called_as
from o2o.errors import UsageError
from o2o.filters.base import Filter
from o2o.formats.handover import HandedModel, Handover
from o2o.model import Model


@dataclass
class _Stage:
    """A filter with its command line."""

    filter: Filter
    argv: list[str]
    args: argparse.Namespace


def run(pipelines: Sequence[Pipeline], debug: bool = False, quiet: bool = False) -> int:
    """Run pipelines in order, up to the first that fails.

    All command lines are checked before anything is read.

    Args:
        pipelines: The pipelines.
        debug: Print the traceback of an error.
        quiet: Print errors only.

    Returns:
        The exit code, that of the filter that failed: see `o2o.cli.command.run`.

    Raises:
        UsageError: A filter is unknown, or its arguments are wrong.
    """
    prepared = [_prepared(pipeline) for pipeline in pipelines]
    with garbage_collection.paused():
        for pipeline, stages in zip(pipelines, prepared, strict=True):
            if code := _run(pipeline, stages, debug, quiet):
                return code
    return 0


def _prepared(pipeline: Pipeline) -> list[_Stage]:
    stages = [_stage(words) for words in pipeline.stages]
    for number, stage in enumerate(stages):
        name = stage.filter.name
        if number and "-" not in stage.filter.input_files(stage.args):
            raise UsageError(f"{name} names its input, so it would not read what the filter before it writes")
        if number < len(stages) - 1 and not stage.filter.writes_model:
            raise UsageError(f"{name} writes no model: it must be the last filter of the pipeline")
        if number < len(stages) - 1 and stage.args.output is not None:
            raise UsageError(f"{name} -o {stage.args.output}: only the last filter writes a file")
    if pipeline.output is not None:
        last = stages[-1].args
        if last.output is not None:
            raise UsageError(f"the pipeline has two outputs: {last.output} and {pipeline.output}")
        last.output = pipeline.output
    return stages


def _stage(words: Sequence[str]) -> _Stage:
    command_, *argv = words
    module = filters.find(command_)
    if module is None:
        names = [filters.load(name).name.removesuffix(".py") for name in filters.names()]
        near = suggestion(command_.removesuffix(".py"), names)
        raise UsageError(f"there is no filter {command_!r}{near or ': `o2o filters` lists them'}")
    filter_ = filters.load(module)()
    parser = filter_.parser()
    argv = parser.canonical(argv)
    try:
        with called_as(filter_.name):
            args = filter_.parse(parser, argv)
            filter_.check_arguments(args)
    except UsageError as error:
        raise UsageError(f"{filter_.name}: {error}") from error
    return _Stage(filter_, argv, args)


def _run(pipeline: Pipeline, stages: Sequence[_Stage], debug: bool, quiet: bool) -> int:
    hand_over = Handover()
    source: streams.Source | None = None
    for number, stage in enumerate(stages):
        results: list[streams.Source] = []
        following = stages[number + 1] if number + 1 < len(stages) else None

        def body(
            stage: _Stage = stage,
            following: _Stage | None = following,
            source: streams.Source | None = source,
            results: list[streams.Source] = results,
            first: bool = not number,
        ) -> int | None:
            filter_ = stage.filter
            filter_.stdin = streams.open_file(pipeline.input) if first and pipeline.input else source
            if following is not None:
                filter_.receiver = lambda result, sources: results.append(
                    _handed(result, sources, following, hand_over)
                )
            return filter_.run(stage.args, stage.argv)

        with called_as(stage.filter.name):
            if code := command.run(
                stage.filter.name, body, debug or stage.args.debug, stage.filter.failure_code
            ):
                return code
            for message in () if quiet else stage.filter.messages:
                command.report(stage.filter.name, message)
        source = results[0] if results else None
    return 0


def _handed(
    result: Model, sources: Sequence[streams.Source], following: _Stage, hand_over: Handover
) -> streams.Source:
    """What the next filter reads."""
    if following.filter.writes_model and not following.args.check:
        return HandedModel(hand_over(result), sources)
    with tempfile.TemporaryFile() as file:  # `--check` reads its input twice, and others describe its bytes
        formats.write(result, file)
        file.flush()
        for source in sources:
            source.finish()
        return streams.FileSource(file.fileno(), HandedModel.name)
