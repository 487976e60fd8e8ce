"""What every filter is: a model in, a model out, one line on stderr, and the same flags and manners."""

from __future__ import annotations

import argparse
import gc
import inspect
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from o2o import __version__, formats, streams
from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.errors import ModelError, UsageError
from o2o.formats.fingerprint import fingerprint
from o2o.model import Format, Model
from o2o.rewriting.topological_sort import topological_sort


class Filter:
    """One command. A subclass gives `name`, a docstring with a drawing, and `apply`.

    The docstring is the `--help` text and the page under `docs/filters/`: its first line says what the
    filter does, then come a before/after drawing and what it refuses.
    """

    name: ClassVar[str]
    usage_example: ClassVar[str]
    formats: ClassVar[tuple[Format, ...]] = ("circle", "tflite")  # what it takes
    writes_model: ClassVar[bool] = True
    changes_graph: bool = True  # else it leaves no entry in the history
    tolerance: float | None = None  # how far results may be off for --check; None: as far as rounding goes

    def __init__(self) -> None:
        self._said: list[str] = []
        self._sources: list[streams.Source] | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the filter's own arguments. The input file is declared by `add_input`."""

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", nargs="?", help="the model; stdin when absent or `-`")

    def apply(self, model: Model, args: argparse.Namespace) -> Model | None:
        """Change `model` in place, or return another. Raises ModelError, UsageError."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """Tell the user one line, on stderr, once the filter has succeeded.

        A filter that fails says why, and nothing of what it had done by then.
        """
        self._said.append(message)

    def parser(self) -> Parser:
        text = inspect.cleandoc(self.__doc__ or "")
        parser = Parser(
            prog=self.name,
            description=text,
            epilog=f"example:\n  {self.usage_example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what works today must mean the same when there are more flags
        )
        self.add_arguments(parser)
        self.add_input(parser)
        parser.add_argument(
            "-o", "--output", metavar="FILE", help="write here, at once when complete; else stdout"
        )
        if self.writes_model:
            parser.add_argument(
                "--check", action="store_true", help="run the model before and after on LiteRT and compare"
            )
        parser.add_argument("--debug", action="store_true", help="show where an error comes from")
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        return parser

    def files(self, args: argparse.Namespace) -> list[str]:
        """What to read, `-` for stdin."""
        return [args.file or "-"]

    def apply_all(self, models: Sequence[Model], args: argparse.Namespace) -> Model:
        """Return the result for all models read. A filter of one model overrides `apply` instead."""
        (model,) = models
        return self.apply(model, args) or model

    def read(self, args: argparse.Namespace) -> list[Model]:
        """The models in `sources`; each call reads them anew."""
        found = [formats.read(source) for source in self.sources(args)]
        for model, source in zip(found, self.sources(args), strict=True):
            self.checked(model, source.name)
        return found

    def sources(self, args: argparse.Namespace) -> list[streams.Source]:
        if self._sources is None:
            files = self.files(args)
            if files.count("-") > 1:
                raise UsageError("stdin (`-`) can be read only once")
            self._sources = [streams.open_source(file) for file in files]
        return self._sources

    def checked(self, model: Model, source: str) -> Model:
        if model.format not in self.formats:
            needed = " or ".join(self.formats)
            raise ModelError(f"{source}: a {model.format} model, but this filter needs {needed}")
        return model

    def entry(self, models: Sequence[Model], args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
        """Return the history entry of this run on `models`, which must be as they were read."""
        return {
            "filter": self.name,
            "arguments": _told(argv, args),
            "version": __version__,
            "input": self.input_fingerprint(models),
        }

    def input_fingerprint(self, models: Sequence[Model]) -> str:
        """Return what the history entry records as its input."""
        (model,) = models
        return fingerprint(model)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int:
        models = self.read(args)
        entry = self.entry(models, args, argv) if self.changes_graph else {}
        model = self.apply_all(models, args)
        for graph in model.graphs:
            topological_sort(graph)
        if self.changes_graph:
            model.history.append(entry)
        if args.check:
            from o2o.check import check

            self.say(check(self.read(args), model, self.tolerance))
        planned = formats.plan(model)
        with streams.open_output(args.output, planned.size) as sink:
            planned.write(sink, passing=True)
            for source in self.sources(args):
                source.finish()
        return 0

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> int:
        """The command: parse `argv`, filter, report. Returns the exit code."""
        filter_ = cls()
        parser = filter_.parser()
        arguments = parser.canonical(sys.argv[1:] if argv is None else argv)

        def body() -> int:
            try:
                args = parser.parse_intermixed_args(arguments)
            except SystemExit as done:  # --help and --version
                return int(done.code or 0)
            code = filter_.run(args, arguments)
            for message in filter_._said:
                command.report(cls.name, message)
            return code

        # A filter lives for one model, most of which it keeps to the end: it would only lose time looking
        # for garbage among tens of thousands of objects that are none.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return command.run(cls.name, body, debug="--debug" in arguments)
        finally:
            if collecting:
                gc.enable()


_FILES = ("-o", "--output", "--report")  # where things went
_UNTOLD = ("--check", "--debug", "--explain")  # they change what is said, not the model


def _told(argv: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The arguments that changed the model: not where it came from or went to, so that history repeats."""
    told: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument in _FILES:
            next(rest, None)
        elif argument not in _UNTOLD and not argument.startswith(("--output=", "--report=", "-o")):
            told.append(argument)
    for file in getattr(args, "files", [getattr(args, "file", None)]):
        if file in told:
            del told[len(told) - 1 - told[::-1].index(file)]  # the last: another may be a name like it
    return told
