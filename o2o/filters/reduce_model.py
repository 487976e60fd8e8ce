"""`reduce.model.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from o2o import formats
from o2o.cli import command
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.text import counted
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.reduction.failing_command import FailingCommand
from o2o.reduction.reducer import Reducer
from o2o.streams.temporary import temporary_folder


class ReduceModel(Filter):
    """Find a small model for which a command still fails: delta debugging.

        x -- 185 operators -- y   => reduce.model.py model.circle -- COMMAND {} =>   a -- 2 operators -- b

    COMMAND runs for each candidate. It gets the candidate's file in place of `{}`, or else on stdin. It must
    fail for the model: exit with another code than 0. A candidate counts if COMMAND exits with the same code.
    With --expect its stderr must contain this text too.
    Signatures, outputs and operators are removed. Inputs become constants. Operators are replaced by an
    operand of the same shape. Dimensions are shrunk. Weights are replaced by random numbers, where COMMAND
    still fails without the real ones. This is repeated until nothing helps.
    External data of ONNX is put into the candidates.
    Candidates break no rule of verify.model.py that the model keeps.
    Interrupted (Ctrl-C), the command writes the smallest model so far.
    Refused: a command that succeeds for the model, or cannot be started.
    """

    name = "reduce.model.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "reduce.model.py model.circle -o small.circle -- lower.onnx.py {} -o /dev/null"
    check_help = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = f"{parser.prog} [options] MODEL -- COMMAND ..."
        parser.add_argument("--expect", metavar="TEXT", help="stderr of COMMAND must contain this text")
        parser.add_argument(
            "--timeout", metavar="SECONDS", type=positive_int, default=300, help="of a run (%(default)s)"
        )
        parser.add_argument(
            "--seed", metavar="N", type=int, default=0, help="of random weights (%(default)s)"
        )

    def parse(self, parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
        own, separator, rest = _split(arguments)
        args = super().parse(parser, own)
        if not separator or not rest:
            raise UsageError("give a command behind `--`: reduce.model.py MODEL -- COMMAND {}")
        args.command = rest
        return args

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> None:
        sources = self.open(args)
        (model,) = models = self.read(sources)
        model.history.append(self.history_entry(models, args, argv))
        with temporary_folder() as folder:
            failing = FailingCommand(args.command, args.expect, args.timeout)
            line = _ProgressLine(sum(len(graph) for graph in model.graphs))
            reducer = Reducer(model, folder, failing, args.seed, line.show)
            for source in sources:
                source.finish()
            self.log(f"the command {failing.watch(reducer.smallest).describe()}")
            try:
                reducer.run()
            except KeyboardInterrupt:
                line.clear()
                self.deliver(formats.load(reducer.smallest), args, [])
                command.report(self.name, f"wrote the smallest model so far: {reducer.describe()}")
                raise
            line.clear()
            self.log(f"{reducer.describe()}, after {counted(failing.runs, 'run')}")
            self.deliver(formats.load(reducer.smallest), args, [])


def _split(arguments: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Arguments before and behind the first `--`."""
    if "--" not in arguments:
        return list(arguments), False, []
    place = list(arguments).index("--")
    return list(arguments[:place]), True, list(arguments[place + 1 :])


class _ProgressLine:
    """One line on a terminal, which is written again after each run."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.shown = sys.stderr is not None and sys.stderr.isatty()

    def show(self, reducer: Reducer) -> None:
        if self.shown:
            runs = counted(reducer.command.runs, "run")
            sys.stderr.write(f"\r\x1b[Kreduced to {reducer.operators} of {self.total} operators, {runs}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


main = ReduceModel.main
