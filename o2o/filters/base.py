"""Base class of the filters: read models, transform them, check and write the result."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from o2o import __version__, formats, garbage_collection, streams
from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.errors import ModelError, UsageError
from o2o.formats.fingerprint import fingerprint
from o2o.formats.handover import HandedModel
from o2o.litertlm import is_bundle
from o2o.model import Format, Model
from o2o.rewriting.topological_sort import topological_sort

if TYPE_CHECKING:
    from o2o.check.interface import Expected

FLATBUFFERS: tuple[Format, ...] = ("circle", "tflite")
ALL_FORMATS: tuple[Format, ...] = (*FLATBUFFERS, "onnx")

Purpose = Literal[
    "Combine, cut, clean up, inspect",
    "Fuse",
    "Inputs and outputs",
    "KV caches",
    "Weights",
    "Convert to another format or runtime",
]
"""What a filter is for: the headings of `o2o filters`, in their order."""


class Filter:
    """One command. A subclass gives `name`, `purpose`, `usage_example`, a docstring and `apply`.

    `run` takes these steps, which a subclass may override: `check_arguments`, `input_files`, `read`,
    `transform` (which calls `apply`), `check` for `--check`, `write`.

    The docstring is the `--help` text and the page in `docs/filters`. Its first line says what the filter
    does. A drawing of before and after follows, then what the filter refuses.
    """

    name: ClassVar[str]
    purpose: ClassVar[Purpose]
    usage_example: ClassVar[str]
    input_formats: ClassVar[tuple[Format, ...]] = FLATBUFFERS  # of the input
    records_history: ClassVar[bool] = True
    writes_model: ClassVar[bool] = True
    failure_code: ClassVar[int] = 1  # the exit code for a model or file that cannot be taken
    check_help: ClassVar[str | None] = "run the model before and after, and compare the outputs"

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.stdin: streams.Source | None = None
        """What stands for stdin; None for stdin itself. `o2o.filters.pipeline` sets it."""
        self.receiver: Callable[[Model, Sequence[streams.Source]], None] | None = None
        """Takes the result and its sources in place of `write`; None to write."""

    # ---- arguments ---------------------------------------------------------------------------------

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the filter's own arguments. `add_input` declares the input file.

        Args:
            parser: Takes the arguments.
        """

    def add_input(self, parser: argparse.ArgumentParser) -> None:
        """Declare the input file.

        Args:
            parser: Takes the argument.
        """
        parser.add_argument("file", nargs="?", help="the model; stdin if absent or `-`")

    def parser(self) -> Parser:
        """Make the parser of the whole command line.

        Returns:
            A parser with the filter's own arguments and the arguments of all filters.
        """
        parser = Parser(
            prog=self.name,
            description=inspect.cleandoc(self.__doc__ or ""),
            examples=[self.usage_example],
            allow_abbrev=False,  # a new flag must not change what an abbreviation means
        )
        self.add_arguments(parser)
        self.add_input(parser)
        parser.add_argument(
            "-o", "--output", metavar="FILE", help="write here, only when complete (default: stdout)"
        )
        if self.check_help is not None:
            parser.add_argument("--check", action="store_true", help=self.check_help)
        else:
            parser.set_defaults(check=False)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        return parser

    def check_arguments(self, args: argparse.Namespace) -> None:
        """Refuse wrong combinations of arguments before anything is read.

        Args:
            args: The arguments; missing values may be filled in.

        Raises:
            UsageError: Two arguments contradict each other.
        """

    # ---- steps -------------------------------------------------------------------------------------

    def input_files(self, args: argparse.Namespace) -> list[str]:
        """Return the files to read.

        Args:
            args: The arguments.

        Returns:
            Paths, `-` for stdin.
        """
        return [args.file or "-"]

    def open(self, args: argparse.Namespace) -> list[streams.Source]:
        """Open the input files.

        Args:
            args: The arguments.

        Returns:
            A source for each file.

        Raises:
            OSError: A file cannot be opened.
            UsageError: Two of them are stdin.
        """
        files = self.input_files(args)
        if files.count("-") > 1:
            raise UsageError("stdin (`-`) can be read only once")
        return [
            self.stdin if file == "-" and self.stdin is not None else streams.open_source(file)
            for file in files
        ]

    def read(self, sources: Sequence[streams.Source]) -> list[Model]:
        """Read a model from each source. A source can be read again.

        Args:
            sources: The input.

        Returns:
            The models, of the formats that the filter takes.

        Raises:
            ModelError: A source holds no model, or one of a format that the filter does not take.
        """
        models = [
            source.take() if isinstance(source, HandedModel) else formats.read(source) for source in sources
        ]
        for model, source in zip(models, sources, strict=True):
            if model.format not in self.input_formats:
                needed = " or ".join(self.input_formats)
                article = "an" if model.format == "onnx" else "a"
                raise ModelError(
                    f"{source.name}: {article} {model.format} model, but this filter needs {needed}"
                )
        return models

    def history_entry(
        self, models: Sequence[Model], args: argparse.Namespace, argv: Sequence[str]
    ) -> dict[str, Any]:
        """Make the history entry of this run.

        Args:
            models: The unchanged input.
            args: The arguments.
            argv: The same as text.

        Returns:
            The entry, for JSON.
        """
        return {
            "filter": self.name,
            "arguments": _recorded_arguments(argv, args),
            "version": __version__,
            "input": self.input_fingerprint(models),
        }

    def input_fingerprint(self, models: Sequence[Model]) -> str:
        """Compute the fingerprint of the input for the history entry.

        Args:
            models: The unchanged input.

        Returns:
            The fingerprint, see `o2o.formats.fingerprint`.
        """
        (model,) = models
        return fingerprint(model)

    def transform(
        self, models: Sequence[Model], args: argparse.Namespace, entry: dict[str, Any] | None
    ) -> Model:
        """Make the result of the filter. A filter that changes one model overrides `apply` instead.

        Args:
            models: The input, which may be changed.
            args: The arguments.
            entry: For the history of the result. None if `records_history` is false.

        Returns:
            What `write` writes.

        Raises:
            ModelError, UsageError: See the filter.
        """
        (model,) = models
        changed = self.apply(model, args)
        for graph in model.all_graphs():
            topological_sort(graph)
        if entry is not None and changed is not False:
            model.history.append(entry)
        return model

    def apply(self, model: Model, args: argparse.Namespace) -> bool | None:
        """Change a model in place.

        Args:
            model: The input.
            args: The arguments.

        Returns:
            False if the model passes unchanged: its history gets no entry.

        Raises:
            ModelError, UsageError: See the filter.
        """
        raise NotImplementedError

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        """Describe the interface that the result must have, for `--check`, without the filter's own steps.

        A filter that changes signatures, inputs or outputs overrides this.

        Args:
            models: The input, read again.
            args: The arguments.

        Returns:
            Each signature of the result, and what it derives from.
        """
        from o2o.check.interface import unchanged

        return unchanged(models)

    def tolerance(self, args: argparse.Namespace) -> float:
        """Return the largest difference that `--check` accepts.

        Args:
            args: The arguments.

        Returns:
            A share of the largest number of a tensor.
        """
        from o2o.check.signature_comparison import TOLERANCE

        return TOLERANCE

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        """Compare the outputs of the input models with the outputs of the result, for `--check`.

        Args:
            models: The input, read again.
            result: From `transform`.
            args: The arguments.

        Returns:
            A message: what was compared, and the largest difference.

        Raises:
            ModelError: An output differs, something disappeared, or a model cannot be run.
        """
        from o2o.check.compare import check

        return check(models, result, self.expected(models, args), self.tolerance(args))

    def write(self, result: Model, output: str | None, sources: Sequence[streams.Source]) -> None:
        """Write the result.

        Args:
            result: From `transform`.
            output: A path; None for stdout.
            sources: The input, which may still hold the weights.

        Raises:
            OSError: It cannot be written.
        """
        formats.save(result, output, sources)

    # ---- the command -------------------------------------------------------------------------------

    def log(self, message: str) -> None:
        """Print a line on stderr when the filter has succeeded. A filter that fails prints only its error.

        Args:
            message: The line, without the name of the filter.
        """
        self.messages.append(message)

    def print(self, text: str, args: argparse.Namespace) -> None:
        """Write the text of a filter that writes no model.

        Args:
            text: The text, with line breaks.
            args: The arguments; `output` is a path, or None for stdout.

        Raises:
            OSError: It cannot be written.
        """
        if args.output is None:
            sys.stdout.write(text)
        else:
            with streams.open_output(args.output) as sink:
                sink.write(text.encode())

    def parse(self, parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the command line.

        Args:
            parser: From `parser`.
            arguments: The arguments.

        Returns:
            The parsed arguments.

        Raises:
            UsageError: They are wrong.
        """
        return parser.parse_intermixed_args(arguments)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        """Take all steps.

        Args:
            args: The arguments.
            argv: The same as text, for the history.

        Returns:
            The exit code; None is 0.
        """
        sources = self.open(args)
        models = self.read(sources)
        entry = self.history_entry(models, args, argv) if self.records_history else None
        result = self.transform(models, args, entry)
        for source in sources:
            if is_bundle(source.header):
                self.log(f"{source.name}: only its language model is written, without tokenizer and metadata")
        if args.check:
            self.log(self.check(self.read(sources), result, args))
        self.deliver(result, args, sources)
        return None

    def deliver(self, result: Model, args: argparse.Namespace, sources: Sequence[streams.Source]) -> None:
        """Write the result, or pass it to the next filter of a pipeline in this process.

        Args:
            result: From `transform`.
            args: The arguments.
            sources: See `write`.

        Raises:
            OSError: It cannot be written.
        """
        if self.receiver is not None:
            self.receiver(result, sources)
        else:
            self.write(result, args.output, sources)

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> int:
        """Run the command.

        Args:
            argv: The arguments; None for `sys.argv[1:]`.

        Returns:
            The exit code, see `o2o.cli.command.run`.
        """
        filter_ = cls()
        parser = filter_.parser()
        arguments = parser.canonical(sys.argv[1:] if argv is None else argv)

        def body() -> int:
            try:
                args = filter_.parse(parser, arguments)
            except SystemExit as exit_:  # --help and --version
                return int(exit_.code or 0)
            filter_.check_arguments(args)
            code = filter_.run(args, arguments)
            for message in filter_.messages:
                command.report(cls.name, message)
            return code or 0

        with garbage_collection.paused():
            return command.run(cls.name, body, debug="--debug" in arguments, failure_code=cls.failure_code)


_FILE_FLAGS = ("-o", "--output", "--report", "--tokenizer", "--genai")  # of results, and of other files
_FILE_PREFIXES = (*(f"{flag}=" for flag in _FILE_FLAGS if flag != "-o"), "-o")
_MESSAGE_FLAGS = ("--check", "--debug", "--explain")  # what was printed


def _recorded_arguments(argv: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The arguments that changed the model, without file names: the same work gives the same history."""
    recorded: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument in _FILE_FLAGS:
            next(rest, None)
        elif argument not in _MESSAGE_FLAGS and not argument.startswith(_FILE_PREFIXES):
            recorded.append(argument)
    for file in getattr(args, "files", [getattr(args, "file", None)]):
        if file in recorded:
            del recorded[len(recorded) - 1 - recorded[::-1].index(file)]  # the last: a name may equal it
    return recorded
