"""Run every example of README and docs, in a clean copy of the repository: `make docs-test`.

    python -m docs.tools.run_examples [PAGE ...]

The pages run one after the other in one folder, `getting-started.md` first: it makes the packages that others
use. Blocks that cannot be run have a comment with the reason (`docs.tools.examples`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.llama2c import write_random
from docs.tools.examples import PAGES, ROOT, Block, blocks

TIMEOUT = 900  # seconds
NOT_RUN = {
    r"make (setup|test|test-fast|families|lint|demo|docs|docs-test|wheel|clean)\b": "it takes long",
    r"o2o chat\b|.* --chat\b": "the demo model has no chat template",
    r"o2o serve\b": "it serves until Ctrl-C",
    r"source |cd |git |pip ": "the environment is active",
}
"""Commands that are not run, and why."""
PLACEHOLDERS = {
    "MODEL": "tinyllama/demo/checkpoint",
    "DIR": "tinyllama/demo/checkpoint",
    "CHECKPOINT": "tinyllama/demo/checkpoint",
    "path/or/hub-id": "tinyllama/demo/checkpoint",
    "BEFORE": "my-tflite",
    "AFTER": "my-int8",
    "BEFORE.tflite": "my-tflite/model.tflite",
    "AFTER.tflite": "my-int8/model.tflite",
}


def script_of(block: Block) -> str:
    """Return the shell script of a `sh` block: its commands, with placeholders filled in.

    Args:
        block: The block.

    Returns:
        The script; empty if none of its commands is run.
    """
    lines = []
    for line in block.commands:
        if not any(re.match(pattern, line) for pattern in NOT_RUN):
            names = "|".join(re.escape(name) for name in sorted(PLACEHOLDERS, key=len, reverse=True))
            lines.append(re.sub(rf"(?<![\w./-])({names})(?![\w./-])", lambda m: PLACEHOLDERS[m[1]], line))
    return "\n".join(lines)


def run(block: Block, folder: Path) -> str:
    """Run a block.

    Args:
        block: A `sh` or `python` block.
        folder: The working directory.

    Returns:
        The problem; empty if it succeeded.
    """
    if block.title:
        return apply(block, folder)
    if block.language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", script_of(block)]
    else:
        command = [sys.executable, "-c", block.text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(folder),
        "VENV": sys.prefix,
        "O2O_CACHE": str(folder / ".cache"),
    }
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"took more than {TIMEOUT} s"
    output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}".strip()
    return "" if done.returncode == 0 else f"exit code {done.returncode}:\n{output}"


def apply(block: Block, folder: Path) -> str:
    """Write or change a file as a block says.

    Args:
        block: A block with a title.
        folder: The copy of the repository.

    Returns:
        The problem; empty if it succeeded.
    """
    file = folder / block.title
    if block.language != "diff":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{block.text}\n")
        return ""
    before, after = block.change
    text = file.read_text()
    if text.count(before) != 1:
        return f"{block.title} has these lines {text.count(before)} times"
    file.write_text(text.replace(before, after))
    return ""


def copy_repository(folder: Path) -> None:
    """Copy the files of the repository that git knows, as a new clone would have them.

    Args:
        folder: Where to.
    """
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    os.utime(folder / "pyproject.toml", (0, 0))  # `make` has nothing to install: the environment is shared


def provide_data(folder: Path) -> None:
    """Provide the checkpoint of `docs/author-a-model.md`: the one beside the repository, else a random one.

    Args:
        folder: The folder of data beside the copy of the repository.
    """
    name = "stories260K/stories260K.bin"
    beside, file = ROOT.parent / "shared" / "data" / name, folder / name
    if beside.is_file():
        file.parent.mkdir(parents=True)
        file.symlink_to(beside)
    else:
        write_random(file)


def main() -> int:
    """Run the examples, and print a line for each.

    Returns:
        The exit code: 1 if one failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", default=PAGES, help="(all)")
    pages = parser.parse_args().pages
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        folder.mkdir()
        copy_repository(folder)
        provide_data(folder.parent / "shared" / "data")
        for block in (block for page in pages for block in blocks(page)):
            if block.language not in ("sh", "python", "diff"):
                continue
            if block.reason or (block.language == "sh" and not script_of(block)):
                print(f"{block.place}: not run: {block.reason or 'see NOT_RUN'}", flush=True)
                continue
            started = time.monotonic()
            problem = run(block, folder)
            failed += bool(problem)
            print(f"{block.place}: {problem or f'{time.monotonic() - started:.1f} s'}", flush=True)
    print(f"{failed} failed" if failed else "all examples ran", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
