"""Derived checkpoints: a folder that export reads, made of a GGUF file, an adapter, or a multimodal model.

    python -m export.derive MODEL -o FOLDER --adapter DIR

`derived` makes such a folder in the user's cache, or takes it from there. The folder holds no weights. It
says how each one is computed from the files of MODEL (`o2o.weights.derived_checkpoint`).
"""

from __future__ import annotations

from o2o.streams.temporary import temporary_folder

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)  # the command that started it prints the line

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.architectures import TEXT_MODELS, causal_models
from export.loading_flags import (
    NO_GRAPH_CACHE,
    STRICT,
    defining_file,
    is_strict,
    model_file,
    own_type,
    set_flags,
)
from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.errors import ModelError, O2oError
from o2o.streams.cache_folder import cache_folder
from o2o.weights.cached_checkpoints import FOLDER, folder_name
from o2o.weights.derived_checkpoint import FILE
from o2o.weights.gguf_file import part_paths

RECORD = "derived_from.json"
"""What a folder was made from, and the lines for the user."""
MULTIMODAL = ("text_config", "vision_config", "audio_config")
"""Fields of config.json that a multimodal model has."""


def needs_derivation(model: Path) -> bool:
    """Check whether a model has to become a derived checkpoint.

    Args:
        model: A GGUF file, or a checkpoint's folder.

    Returns:
        Whether it is a GGUF file, a multimodal model with a text part that transformers knows, or a model
        that a Python file defines.
    """
    if model.is_file():
        return True
    if (model / FILE).is_file():
        return False
    if authored_type(model) is not None:
        return True
    fields = _config(model)
    if not any(isinstance(fields.get(name), dict) for name in MULTIMODAL):
        return False
    text = fields.get("text_config")
    names = {(text if isinstance(text, dict) else {}).get("model_type"), fields.get("model_type")}
    return any(name in TEXT_MODELS for name in names) or (
        isinstance(text, dict) and text.get("model_type") in causal_models()
    )


def authored_type(model: Path) -> str | None:
    """Return the model type of a model that a Python file defines.

    Args:
        model: A checkpoint's folder, or a file.

    Returns:
        That of `--model-file`, or the `model_type` of a model of this package; None for other models.
    """
    if (path := model_file()) is not None:
        return own_type(path)
    kind = _config(model).get("model_type") if model.is_dir() else None
    return str(kind) if defining_file(kind) is not None else None


def _config(model: Path) -> dict[str, Any]:
    """The fields of config.json; empty if it cannot be read."""
    try:
        fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def derive(model: Path, adapter: Path | None, folder: Path) -> list[str]:
    """Make a derived checkpoint. Imports torch and transformers, which takes seconds.

    Args:
        model: A GGUF file, or a checkpoint's folder.
        adapter: The folder of an adapter (LoRA) to merge; None for none.
        folder: An empty folder to fill.

    Returns:
        Lines for the user: what was left out.

    Raises:
        ModelError: The model or the adapter is damaged or not supported.
        OSError: A file cannot be read or written.
    """
    if adapter is None:
        return _derive_base(model, folder)
    from export.adapter import merge_adapter

    if not needs_derivation(model):
        return merge_adapter(model, adapter, folder)
    with temporary_folder() as base:
        lines = _derive_base(model, base)
        return lines + merge_adapter(base, adapter, folder)


def _derive_base(model: Path, folder: Path) -> list[str]:
    kind = authored_type(model)
    if kind is not None and (path := defining_file(kind)) is not None:
        from export.authoring.checkpoint import derive_authored

        return derive_authored(model, path, kind, folder, is_strict())
    if model.is_file():
        from export.gguf_checkpoint import derive_gguf

        return derive_gguf(model, folder)
    from export.text_part import derive_text_part

    return derive_text_part(model, folder)


def derived(model: Path, adapter: Path | None, log: Callable[[str], None]) -> Path:
    """Return the derived checkpoint of a model, from the user's cache if it is there and up to date.

    Args:
        model: A GGUF file, or a checkpoint's folder.
        adapter: See `derive`.
        log: Receives lines for the user.

    Returns:
        The folder.

    Raises:
        ModelError: See `derive`.
        O2oError: The cache's folder cannot be made.
        OSError: The cache cannot be written.
    """
    model, adapter = model.absolute(), adapter and adapter.absolute()
    inputs = _inputs(model, adapter)
    identity = json.dumps(
        [str(model), str(adapter), *(flag for flag in set_flags() if flag != NO_GRAPH_CACHE)]
    ).encode("utf-8", "surrogatepass")
    name = hashlib.sha256(identity).hexdigest()
    folder = _cache() / folder_name((adapter or model).name.removesuffix(".gguf"), name)
    record = _read(folder / RECORD)
    if record.get("inputs") != inputs:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise O2oError(f"{folder.parent}: {error.strerror}: set O2O_CACHE to a folder for it") from error
        with temporary_folder(folder.parent, ".derived-") as staged:
            lines = _derive_in_child(model, adapter, staged)
            record = {"inputs": inputs, "lines": lines}
            (staged / RECORD).write_text(json.dumps(record), encoding="utf-8")
            _replace(staged, folder)
    for line in record["lines"]:
        log(line)
    return folder


def _derive_in_child(model: Path, adapter: Path | None, folder: Path) -> list[str]:
    """Derive in a child process, whose memory is free afterwards; in this one if it has torch already."""
    if "torch" in sys.modules:
        return derive(model, adapter, folder)
    more = [] if adapter is None else ["--adapter", str(adapter)]
    arguments = [
        str(model),
        "-o",
        str(folder),
        *more,
        *(flag for flag in set_flags() if flag not in (STRICT, NO_GRAPH_CACHE)),
    ]
    child = subprocess.run(
        [sys.executable, "-m", "export.derive", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("derive: ") if lines else f"exit code {child.returncode}"
        raise (ModelError if child.returncode == 1 else O2oError)(reason.removeprefix("error: "))
    return json.loads(child.stdout)


def _replace(staged: Path, folder: Path) -> None:
    """Move a complete folder to its place, in place of an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process was faster
        os.rename(staged, folder)


def _inputs(model: Path, adapter: Path | None) -> list[list[Any]]:
    """The state of all files that a derived checkpoint depends on: of the model, and of this program."""
    code = ("export", "export/authoring", "export/models", "o2o/weights")
    sources = [path for name in code for path in (_ROOT / name).glob("*.py")]
    folders = [folder for folder in (model, adapter) if folder is not None and folder.is_dir()]
    files = [path for path in part_paths(model) if path.is_file()]
    if (own := model_file()) is not None:
        files += own.parent.glob("*.py")  # it may import those beside it
    files += [path for folder in folders for path in folder.iterdir() if path.is_file()]
    states = ((path, path.stat()) for path in sorted([*files, *sources]))
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


_ROOT = Path(__file__).resolve().parents[1]


def _cache() -> Path:
    """The folder of derived checkpoints."""
    cache = cache_folder() or Path(tempfile.gettempdir()) / f"o2o-{os.getuid()}"
    return cache / FOLDER


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if (path.parent / FILE).is_file() else {}
    except (OSError, ValueError):
        return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. The lines for the user are written to stdout, as JSON.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    from export.loading_flags import MODEL_FILE, TRUST, add_loading_flags

    parser = Parser(prog="derive", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--adapter", metavar="DIR", type=Path)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_loading_flags(parser, TRUST, MODEL_FILE)
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> None:
        from o2o.cli.silence_stderr import suppressed_warnings

        args = parser.parse_args(arguments)
        with suppressed_warnings():
            lines = derive(args.model, args.adapter, args.output)
        print(json.dumps(lines))

    return command.run("derive", body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
