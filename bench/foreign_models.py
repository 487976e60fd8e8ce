"""Run every filter with --check on a folder of TFLite and Circle models, and print what happened.

    python bench/foreign_models.py FOLDER [--filters gc.py,fuse.fc.py] [--largest MB] [--jobs 2]

For each file and each filter that applies, one line of a table:

    checked     the result equals the original (--check), and TICO's verifier or LiteRT reads it
    refused     exit code 1 or 2 and one line: the filter does not apply to this model
    wrong       --check refuses the result
    lost        the filter ended well, and files behind the FlatBuffer or signatures are missing
    internal    an internal error, a traceback or a signal
    slow        no result after --timeout seconds

The last line has the sums. The exit code is 1 if anything is wrong, lost or internal. Models are not part of
this repository: wheels of mediapipe or of wake words have many (`pip download --no-deps`, then unzip).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("foreign_models.py")

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from o2o import formats
from o2o.errors import ModelError
from o2o.model import Model, shape_of

BAD = ("wrong", "lost", "internal")


def commands(model: Model) -> Iterator[list[str]]:
    """Yield the command lines that suit a model: filters that need an argument get one from the model.

    Args:
        model: The model.

    Yields:
        A filter and its arguments, without files.
    """
    plain = (
        "gc.py",
        "with.py",
        "fuse.fc.py",
        "fuse.bmm_lhs_const.py",
        "reshape.fc_weight.py",
        "merge.circles.py",
    )
    yield from ([name] for name in plain)
    yield from (
        [name] for name in ("fuse.rms_norm.py", "fuse.attention.py", "fuse.rope.py", "lower.litert.py")
    )
    yield from ([name] for name in ("raise.circle.py", "wrap.composites.py", "downcast.input_ids.py"))
    yield ["quantize.weights.py", "--recipe", "dynamic_int8"]
    graph = model.graphs[0]
    outputs = [value.name or "" for value in graph.outputs]
    yield ["remove.io.py", "output", "--keep_by_id", "0"]
    if len(outputs) > 1:
        order = ",".join(map(str, reversed(range(len(outputs)))))
        yield ["reorder.output.py", "--by_id", order]
        yield ["reorder.output.move_0_to_last.py"]
    if outputs and outputs[0] and "=" not in outputs[0] and "," not in outputs[0]:
        yield ["rename.io.py", "output", f"{outputs[0]}=renamed_output"]
    for io, values in (("input", graph.inputs), ("output", graph.outputs)):
        shape = [*map(str, shape_of(values[0]))] if values else []
        if shape:
            yield ["reshape.io.py", io, "--by_shape", f"[{','.join(shape)}]", f"[1,{','.join(shape)}]"]
    count = len([*graph])
    if count > 1:
        yield ["select.op.py", "--by_id", f"0-{count // 2}"]


def run(file: Path, command: list[str], folder: Path, timeout: float) -> tuple[str, str]:
    """Run a filter with --check.

    Args:
        file: The model.
        command: The filter and its arguments.
        folder: Where the result goes.
        timeout: Seconds.

    Returns:
        One of the results in this module's docstring, and the last line that the filter printed.
    """
    output = folder / f"{file.stem}-{abs(hash((file, *command)))}{file.suffix}"
    line = [sys.executable, "-m", "o2o", *command, "--check", "-o", str(output), str(file)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "slow", f"no result after {timeout:g} s"
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode < 0 or "internal error" in done.stderr or "Traceback" in done.stderr:
        return "internal", said[-1]
    if done.returncode:
        refusal = said[-1].partition(": ")[2]
        is_wrong = (
            refusal.startswith("--check")
            and "of the original" not in refusal
            and "the original" not in refusal
        )
        return ("wrong" if is_wrong else "refused"), said[-1]
    try:
        loss = _loss(formats.load(file), formats.load(output), command[0])
    except (ModelError, OSError) as error:
        loss = str(error)
    finally:
        output.unlink(missing_ok=True)
    return ("lost", loss) if loss else ("checked", said[-1])


def _loss(before: Model, after: Model, name: str) -> str:
    """What the result lacks; "" for nothing."""
    files = {one.info.filename for one in before.associated_files}
    if missing := files - {one.info.filename for one in after.associated_files}:
        return f"associated files {', '.join(sorted(missing))}"
    signatures = {one.name for one in before.signatures} - {one.name for one in after.signatures}
    if signatures and name != "select.op.py":
        return f"signatures {', '.join(sorted(signatures))}"
    entries = {entry for entry, _ in before.metadata} - {entry for entry, _ in after.metadata}
    return f"metadata {', '.join(sorted(entries))}" if entries else ""


def main() -> int:
    """Print the table.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--filters", default="", help="only these, separated by commas")
    parser.add_argument("--largest", type=float, default=20, metavar="MB", help="skip larger files")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = set(filter(None, args.filters.split(",")))
    files = sorted(path for path in args.folder.rglob("*") if path.suffix in (".tflite", ".circle"))
    jobs: list[tuple[Path, list[str]]] = []
    for file in files:
        if file.stat().st_size > args.largest * 1e6:
            print(f"{file.name}: skipped, {file.stat().st_size / 1e6:.0f} MB")
            continue
        try:
            model = formats.load(file)
        except ModelError as error:
            print(f"{file.name}: refused: {error}")
            continue
        jobs += [(file, command) for command in commands(model) if not chosen or command[0] in chosen]
    sums: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda job: run(job[0], job[1], Path(folder), args.timeout), jobs)
        for (file, command), (result, line) in zip(jobs, results, strict=True):
            sums[result] += 1
            text = line if result != "checked" else ""
            print(f"{result:<9} {file.name:<40} {' '.join(command)[:50]:<50} {text}", flush=True)
    print(f"{len(files)} files, " + ", ".join(f"{count} {result}" for result, count in sums.most_common()))
    return 1 if any(sums[result] for result in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
