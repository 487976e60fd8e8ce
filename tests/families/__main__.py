"""Check every model family on every road: `python -m tests.families`, or `make families`.

For each case: a tiny random checkpoint, converted with default flags to Circle, TFLite and ONNX. LiteRT and
ONNX Runtime read prompts of many lengths and decode up to 40 tokens; every logit is compared with
transformers. int8 is compared, too.

Results are stored in build/families. With --resume, a case that was checked with the same sources is not
checked again. When all cases were checked, the table of docs/families.md is written.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("families")

import argparse
import multiprocessing
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from o2o.cli.arguments import Parser, name_list, positive_int
from o2o.cli.command import run
from o2o.cores import cores
from o2o.errors import UsageError
from tests.families import table
from tests.families.cases import CASES, Case
from tests.families.check import check_in_child
from tests.families.results import ROOT, Result, store, stored

TIMEOUT = 600
"""Seconds that a case may take."""
PRELOADED = ["torch", "transformers", "tico"]


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m tests.families",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", metavar="A,B", type=name_list, help="model types, or parts of cases' names")
    add("--ci", action="store_true", help="the cases that CI checks")
    add("--resume", action="store_true", help="use stored results of the same sources")
    add("--jobs", metavar="N", type=positive_int, default=cores(), help="cases at a time (cores)")
    add("--output", metavar="DIR", type=Path, default=ROOT / "build" / "families", help="of results and logs")
    return parser


def selected(only: Sequence[str] | None, ci: bool) -> list[Case]:
    """Select cases.

    Args:
        only: Model types, or parts of names; None for all.
        ci: Whether to select CI's cases only.

    Returns:
        The cases.

    Raises:
        UsageError: There is none.
    """
    cases = [
        case
        for case in CASES
        if (case.ci or not ci)
        and (only is None or any(word in case.name or word == case.model_type for word in only))
    ]
    if not cases:
        raise UsageError(f"no such case: choose from {', '.join(case.name for case in CASES)}")
    return cases


def check_all(args: argparse.Namespace) -> int:
    """Check the cases of the command line.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    cases = selected(args.only, args.ci)
    args.output.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    printing = threading.Lock()

    def one(case: Case) -> Result:
        result = stored(args.output, case) if args.resume else None
        if result is None:
            result = _in_process(context, case, args.output)
            store(args.output, case, result)
        with printing:
            print(line(result), flush=True)
        return result

    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(one, cases))
    if len(cases) == len(CASES):
        table.write(cases, results)
    passed = sum(result.passed for result in results)
    print(f"{passed} of {len(results)} cases pass")
    return 0 if passed == len(results) else 1


def _in_process(context: multiprocessing.context.BaseContext, case: Case, folder: Path) -> Result:
    """Check a case in a process of its own: an engine may end it."""
    receiver, sender = context.Pipe(duplex=False)
    name = case.name.replace(", ", "-").replace(" ", "-")
    child = context.Process(target=check_in_child, args=(case, folder / f"{name}.log", sender))
    child.start()
    sender.close()
    result = None
    try:
        if receiver.poll(TIMEOUT):
            result = receiver.recv()
    except EOFError:
        pass
    if child.is_alive() and result is None:
        child.kill()
    child.join()
    return result or Result(case.name, error=f"the process ended with exit code {child.exitcode}")


def line(result: Result) -> str:
    """Describe a result.

    Args:
        result: The result.

    Returns:
        A line, and one more for each failure.
    """
    mark = "ok  " if result.passed else "FAIL"
    lines = [
        f"{mark} {result.name:24} fused {result.fused} of {result.attentions}, float32 {result.largest:.1e}, "
        f"int8 {result.int8:.2f}, {result.seconds:.0f} s"
    ]
    lines += [f"       {result.error}"] if result.error else []
    lines += [f"       {run.road} on {run.engine}: {run.error}" for run in result.runs if run.error]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 1 if a case fails.
    """
    return run("families", lambda: check_all(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
