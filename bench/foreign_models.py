"""Run every filter with --check on a folder of TFLite and Circle models, and print what happened.

    python bench/foreign_models.py FOLDER [--sample N] [--results FILE] [--filters gc.py,fuse.fc.py]

For each file and each filter, one line:

    checked     the result equals the original (--check), and nothing behind the FlatBuffer was lost
    refused     exit code 1 or 2 and one line: the filter does not apply, or no engine can run the original
    wrong       --check refuses the result
    lost        the filter succeeded, but files behind the FlatBuffer or signatures are missing
    internal    an internal error, a traceback, a signal, or more than one line of an error
    slow        no result after --timeout seconds

Then follow a table for each folder of models, and the refusals by reason. The exit code is 1 if anything is
wrong, lost or internal. One process runs all filters on a file. `--results` keeps each line as JSON, and a
run with the same file continues there. `--sample N` takes N files of each folder, evenly spaced by name.

Models are not part of this repository. Wheels of mediapipe or of wake words have many (`pip download
--no-deps`, then unzip); so has the test data of LiteRT, whose files may end in `.bin`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("foreign_models.py")

import argparse
import contextlib
import io
import json
import re
import shlex
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from o2o import filters, formats
from o2o.errors import ModelError
from o2o.model import Model, shape_of

BAD = ("wrong", "lost", "internal")
SUFFIXES = (".tflite", ".circle", ".bin")
PLAIN = (
    "gc.py",
    "with.py",
    "fuse.fc.py",
    "fuse.bmm_lhs_const.py",
    "reshape.fc_weight.py",
    "merge.circles.py",
    "fuse.rms_norm.py",
    "fuse.attention.py",
    "fuse.rope.py",
    "lower.litert.py",
    "lower.onnx.py",
    "legalize.onert.py",
    "raise.circle.py",
    "wrap.composites.py",
    "downcast.input_ids.py",
    "sign.contract.py",
    "sign.ai_edge.py",
    "transpose.io.kvcache.py",
)
"""Filters that need no argument."""


@dataclass(frozen=True)
class Outcome:
    """What a filter did with a file.

    Attributes:
        file: The path of the model, relative to the folder.
        command: The filter and its arguments, as a shell reads them.
        result: See this module's docstring.
        line: The last line that the filter printed.
    """

    file: str
    command: str
    result: str
    line: str


def commands(model: Model) -> Iterator[list[str]]:
    """Yield the command lines that suit a model: filters that need an argument get one from the model.

    Args:
        model: The model.

    Yields:
        A filter and its arguments, without files.
    """
    yield from ([name] for name in PLAIN)
    yield ["bucket.kvcache.py", "--capacities", "8"]
    yield ["quantize.weights.py", "--recipe", "dynamic_int8"]
    yield ["quantize.weights.py", "--recipe", "float16"]
    graph = model.graphs[0]
    outputs = [value.name or "" for value in graph.outputs]
    yield ["remove.io.py", "output", "--keep_by_id", "0"]
    if len(outputs) > 1:
        order = ",".join(map(str, reversed(range(len(outputs)))))
        yield ["reorder.output.py", "--by_id", order]
        yield ["reorder.output.move_0_to_last.py"]
    for side, values in (("input", graph.inputs), ("output", graph.outputs)):
        name = (values[0].name or "") if values else ""
        if name and "=" not in name and "," not in name:
            yield ["rename.io.py", side, f"{name}=renamed_{side}"]
        shape = [*map(str, shape_of(values[0]))] if values else []
        if shape:
            yield ["reshape.io.py", side, "--by_shape", f"[{','.join(shape)}]", f"[1,{','.join(shape)}]"]
    count = len([*graph])
    if count > 1:
        yield ["select.op.py", "--by_id", f"0-{count // 2}"]
        yield ["select.op.py", "--by_id", f"{count // 2}-{count - 1}"]


class _TooSlow(BaseException):
    """A filter took longer than allowed. No `except Exception` stops it."""


def _stop(*_: object) -> None:
    raise _TooSlow


def run(file: Path, command: Sequence[str], folder: Path, timeout: float) -> tuple[str, str]:
    """Run a filter with --check in this process.

    Args:
        file: The model.
        command: The filter and its arguments.
        folder: Where the result goes.
        timeout: Seconds.

    Returns:
        One of the results in this module's docstring, and the last line that the filter printed.
    """
    name, *arguments = command
    suffix = ".onnx" if name == "lower.onnx.py" else ".circle" if name == "raise.circle.py" else file.suffix
    output = folder / f"result{suffix}"
    output.unlink(missing_ok=True)
    stderr = io.StringIO()
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            code = filters.load(filters.find(name) or name).main(
                [*arguments, "--check", "-o", str(output), str(file)]
            )
    except _TooSlow:
        return "slow", f"no result after {timeout:g} s"
    except BaseException as error:
        return "internal", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    lines = stderr.getvalue().strip().splitlines() or [""]
    if "internal error" in lines[-1] or (code and len(lines) != 1):
        return "internal", lines[-1]
    if code:
        refusal = lines[-1].partition(": ")[2]
        is_wrong = refusal.startswith("--check") and not re.search(r"\bthe original\b", refusal)
        return ("wrong" if is_wrong else "refused"), lines[-1]
    try:
        loss = _loss(formats.load(file), formats.load(output), name)
    except (ModelError, OSError) as error:
        loss = str(error)
    return ("lost", loss) if loss else ("checked", lines[-1])


def _loss(before: Model, after: Model, name: str) -> str:
    """What the result lacks; "" for nothing."""
    if after.format == "onnx":
        return ""
    files = {one.info.filename for one in before.associated_files}
    if missing := files - {one.info.filename for one in after.associated_files}:
        return f"associated files {', '.join(sorted(missing))}"
    signatures = {one.name for one in before.signatures} - {one.name for one in after.signatures}
    if signatures and name != "select.op.py":
        return f"signatures {', '.join(sorted(signatures))}"
    entries = {entry for entry, _ in before.metadata} - {entry for entry, _ in after.metadata}
    return f"metadata {', '.join(sorted(entries))}" if entries else ""


def run_all(file: Path, label: str, skipped: Iterable[str], chosen: set[str], timeout: float) -> None:
    """Run the filters on a file, and print each outcome as a line of JSON. Ends at a filter that is slow.

    Args:
        file: The model.
        label: Its name in the outcomes.
        skipped: Commands that are not run.
        chosen: The filters to run; empty for all.
        timeout: Seconds for each.
    """
    try:
        lines = [*commands(formats.load(file))]
    except ModelError as error:
        lines = []
        print(json.dumps(asdict(Outcome(label, "read", "refused", str(error)))))
    except Exception as error:
        lines = []
        print(json.dumps(asdict(Outcome(label, "read", "internal", repr(error)))))
    with tempfile.TemporaryDirectory() as folder:
        for command in lines:
            line = shlex.join(command)
            if line in skipped or (chosen and command[0] not in chosen):
                continue
            print(json.dumps({"next": line}), flush=True)
            outcome = Outcome(label, line, *run(file, command, Path(folder), timeout))
            print(json.dumps(asdict(outcome)), flush=True)
            if outcome.result == "slow":
                return  # what it left running may delay the next one


def outcomes_of(
    file: Path, label: str, done: set[str], chosen: Sequence[str], timeout: float
) -> list[Outcome]:
    """Run the filters on a file in a process of its own, and in another one after a crash.

    Args:
        file: The model.
        label: Its name in the outcomes.
        done: Commands that need not run.
        chosen: The filters to run; empty for all.
        timeout: Seconds for each.

    Returns:
        The outcomes.
    """
    outcomes: list[Outcome] = []
    skipped = set(done)
    while True:
        request = json.dumps([str(file), label, sorted(skipped), list(chosen), timeout])
        line = [sys.executable, __file__, "--worker"]
        child = subprocess.run(line, input=request, capture_output=True, text=True)
        started = None
        for entry in map(json.loads, filter(None, child.stdout.splitlines())):
            started = entry.get("next")
            if started is None:
                outcomes.append(Outcome(**entry))
        if started is not None:
            last = (child.stderr.strip().splitlines() or [""])[-1]
            outcomes.append(Outcome(label, started, "internal", f"exit code {child.returncode}: {last}"))
        skipped |= {outcome.command for outcome in outcomes}
        if started is None and (not outcomes or outcomes[-1].result != "slow"):
            return outcomes


def sample(files: Sequence[Path], count: int) -> list[Path]:
    """Choose some files of each folder, evenly spaced.

    Args:
        files: All, sorted.
        count: The number for each folder.

    Returns:
        Those that were chosen.
    """
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    return [
        some[number * len(some) // min(count, len(some))]
        for some in folders.values()
        for number in range(min(count, len(some)))
    ]


def print_tables(outcomes: Sequence[Outcome]) -> None:
    """Print a Markdown table of the results by folder, and the refusals by reason.

    Args:
        outcomes: Of all files.
    """
    names = ("checked", "refused", *BAD, "slow")
    print(f"\n| models | files | {' | '.join(names)} |\n|---|{'---|' * (len(names) + 1)}")
    sums: dict[str, Counter[str]] = {}
    files: dict[str, set[str]] = {}
    for outcome in outcomes:
        for folder in (outcome.file.partition("/")[0] if "/" in outcome.file else ".", "all"):
            sums.setdefault(folder, Counter())[outcome.result] += 1
            files.setdefault(folder, set()).add(outcome.file)
    for folder in sorted(sums, key=lambda folder: (folder == "all", folder)):
        row = (len(files[folder]), *(sums[folder][name] for name in names))
        print(f"| {folder} | {' | '.join(map(str, row))} |")
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.result == "refused":
            text = outcome.line.partition(": ")[2] or outcome.line
            reasons[re.sub(r"[\w./:;\[\]-]*\d[\w./:;\[\]-]*|'[^']*'", "_", text)[:110]] += 1
    print("\nRefusals by reason:")
    for reason, count in reasons.most_common():
        print(f"{count:6d} {reason}")


def main() -> int:
    """Print the outcomes and the tables.

    Returns:
        The exit code.
    """
    if sys.argv[1:] == ["--worker"]:
        file, label, skipped, chosen, timeout = json.load(sys.stdin)
        run_all(Path(file), label, skipped, set(chosen), timeout)
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--filters", default="", help="only these, separated by commas")
    parser.add_argument("--sample", type=int, metavar="N", help="N files of each folder")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep outcomes; continue where it ends")
    parser.add_argument("--largest", type=float, default=20, metavar="MB", help="skip larger files")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="files at a time")
    args = parser.parse_args()
    files = sorted(path for path in args.folder.rglob("*") if path.suffix in SUFFIXES)
    files = [file for file in files if file.stat().st_size <= args.largest * 1e6]
    if args.sample is not None:
        files = sample(files, args.sample)
    outcomes: list[Outcome] = []
    if args.results is not None and args.results.exists():
        outcomes = [Outcome(**json.loads(line)) for line in args.results.read_text().splitlines()]
    known = {str(file.relative_to(args.folder)) for file in files}
    outcomes = [outcome for outcome in outcomes if outcome.file in known]
    done: dict[str, set[str]] = {}
    for outcome in outcomes:
        done.setdefault(outcome.file, set()).add(outcome.command)
    chosen = [name for name in args.filters.split(",") if name]

    def task(file: Path) -> list[Outcome]:
        label = str(file.relative_to(args.folder))
        return outcomes_of(file, label, done.get(label, set()), chosen, args.timeout)

    kept = args.results.open("a") if args.results is not None else contextlib.nullcontext(io.StringIO())
    with ThreadPoolExecutor(args.jobs) as pool, kept as results:
        for some in pool.map(task, files):
            for outcome in some:
                print(json.dumps(asdict(outcome)), file=results, flush=True)
                text = "" if outcome.result == "checked" else outcome.line
                print(f"{outcome.result:<9} {outcome.file:<40} {outcome.command[:50]:<50} {text}", flush=True)
            outcomes += some
    print_tables(outcomes)
    return 1 if any(outcome.result in BAD for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
