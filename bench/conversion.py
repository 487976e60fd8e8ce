"""Measure a conversion by its steps: cold, of a second checkpoint, and with a trace of each graph.

    python bench/conversion.py [CHECKPOINT] [--shape 135m] [--max-length 1024] [--rounds 3] [--more ARGUMENTS]

`traced` traces every graph, in processes beside each other, and runs each filter in a process of its own.
`cold` is `o2o convert` with an empty cache of graphs: one trace. `second` converts another checkpoint of the
same architecture and lengths, whose graphs are cached. The weights are in the file cache. A round runs all
three, so their ratios are those of one machine under one load. CPU seconds are those of all processes.
All models must have the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("conversion.py")

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence

from bench.make_checkpoint import SHAPES
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import O2oError
from o2o.streams.temporary import temporary_folder

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("start", "export", "filters", "answers")
"""Until the first command; the export; the filters; the known answers and the copy of other files."""
TRACE_EACH = """
import sys
from export import __main__ as exporter
from export import convert, export_graphs, shell
from export.graph_groups import GraphGroup
if __name__ == "__main__" and sys.argv[1] == "convert":
    shell._filters_of = shell._export_of = lambda step: None
    shell.EXPORT = shell.EXPORT.replace("-m export", f"{sys.argv[0]} export")
    sys.exit(convert.main(sys.argv[2:]))
if __name__ == "__main__":
    export_graphs.graph_groups = lambda specs: [GraphGroup(spec) for spec in specs]
    sys.exit(exporter.main(sys.argv[2:]))
"""
"""A conversion as it would be without derived graphs, cached graphs and filters in one process."""


def timed(command: Sequence[str], cache: Path) -> dict[str, float]:
    """Run a conversion.

    Args:
        command: The command, which shows its steps on stderr.
        cache: The folder of cached graphs.

    Returns:
        Seconds of each of `STEPS`, `total`, and `cpu` of all processes.

    Raises:
        O2oError: The conversion fails.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    marks, lines = {"start": started}, []
    environment = {**os.environ, "O2O_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            now = time.perf_counter()
            if " -o . " in line and "export" not in marks:
                marks["export"] = now
            elif line.startswith("export: wrote"):
                marks["filters"] = now
            elif line.startswith("bind.weights.py: bound"):
                marks["answers"] = now
    ended = time.perf_counter()
    if process.returncode:
        raise O2oError(f"the conversion failed: {' '.join(line.strip() for line in lines[-2:])}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [marks.get(name, ended) for name in (*STEPS[1:], "end")]
    begins = [started, *ends[:-1]]
    seconds = {name: max(0.0, end - begin) for name, begin, end in zip(STEPS, begins, ends, strict=True)}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**seconds, "total": ended - started, "cpu": cpu}


def second_checkpoint(first: Path, folder: Path) -> Path:
    """Make another checkpoint of the same architecture: other facts of its text, other files.

    Args:
        first: A checkpoint's folder.
        folder: The folder to create.

    Returns:
        The folder.
    """
    shutil.copytree(first, folder)
    config = folder / "config.json"
    config.chmod(0o644)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "second"}))
    return folder


def digest(package: Path) -> str:
    """Return a hash of the model of a package.

    Args:
        package: The folder.

    Returns:
        The SHA-256 of its largest file.
    """
    model = max(package.glob("model.*"), key=lambda file: file.stat().st_size)
    with model.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def measure(checkpoint: Path, length: int, more: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Convert in all three ways, in turn.

    Args:
        checkpoint: The checkpoint's folder.
        length: S, tokens of context.
        more: Further arguments of `o2o convert`.
        rounds: The number of rounds.

    Returns:
        {way: the medians of the numbers of `timed`, and of `ratio`, its total over that of `traced`}.

    Raises:
        O2oError: A conversion fails, or the packages differ.
    """
    results: dict[str, list[dict[str, float]]] = {"traced": [], "cold": [], "second": []}
    with temporary_folder() as name:
        folder = Path(name)
        (folder / "trace_each.py").write_text(TRACE_EACH)
        second = second_checkpoint(checkpoint, folder / "second")
        for number in range(rounds):
            cache, digests = folder / f"cache-{number}", set()
            for way, ways in results.items():
                model = second if way == "second" else checkpoint
                package = folder / f"package-{way}"
                arguments = [str(model), "-o", str(package), "--max-length", str(length), *more]
                script = str(folder / "trace_each.py")
                program = [script, "convert"] if way == "traced" else ["-m", "export.convert"]
                flags = ["--no-graph-cache"] if way == "traced" else []
                ways.append(timed([sys.executable, *program, *arguments, *flags], cache))
                digests.add(digest(package))
                shutil.rmtree(package)
            if len(digests) > 1:
                raise O2oError("the packages differ")
    table: dict[str, dict[str, float]] = {}
    for way, runs in results.items():
        table[way] = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        ratios = [one["total"] / traced["total"] for one, traced in zip(runs, results["traced"], strict=True)]
        table[way]["ratio"] = statistics.median(ratios)
    return table


def report(table: Mapping[str, Mapping[str, float]]) -> None:
    """Print the seconds of each way.

    Args:
        table: From `measure`.
    """
    columns = [*STEPS, "total", "cpu", "ratio"]
    print(f"{'':8}" + "".join(f"{column:>9}" for column in columns))
    for way, numbers in table.items():
        print(f"{way:8}" + "".join(f"{numbers[column]:9.2f}" for column in columns))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="the checkpoint's folder")
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="135m", help="of a random checkpoint (%(default)s)")
    parser.add_argument("--max-length", type=positive_int, default=256, metavar="S", help="(%(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--more", default="", metavar="ARGUMENTS", help="further arguments of o2o convert")
    return run("conversion.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    with temporary_folder() as name:
        checkpoint = args.checkpoint and args.checkpoint.absolute()
        if checkpoint is None:
            checkpoint = Path(name, "checkpoint")
            command = [sys.executable, str(ROOT / "bench" / "make_checkpoint.py"), str(checkpoint)]
            subprocess.run([*command, "--shape", args.shape], check=True, stdout=subprocess.DEVNULL)
        for file in checkpoint.iterdir():
            file.read_bytes()  # into the file cache
        report(measure(checkpoint, args.max_length, args.more.split(), args.rounds))


if __name__ == "__main__":
    sys.exit(main())
