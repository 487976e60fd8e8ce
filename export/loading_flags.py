"""The flags that decide how a checkpoint is loaded and traced, such as `--strict` and `--trust-remote-code`.

A flag is set for the process and for its child processes: each command of a conversion loads the checkpoint.

Code in a checkpoint (Python files that `auto_map` of `config.json` names) runs only if the user allows it.
transformers would ask on stdin. Here nothing asks: a model that transformers knows needs no such code, and
another one is refused in one line.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from export.architectures import is_known
from export.models import built_in

STRICT = "--strict"
TRUST = "--trust-remote-code"
MODEL_FILE = "--model-file"
NO_GRAPH_CACHE = "--no-graph-cache"
VARIABLES = {
    STRICT: "O2O_STRICT",
    TRUST: "O2O_TRUST_REMOTE_CODE",
    MODEL_FILE: "O2O_MODEL_FILE",
    NO_GRAPH_CACHE: "O2O_NO_GRAPH_CACHE",
}
"""The environment variable behind each flag: 1, or the path of the model file."""


class _Set(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        path = None if self.nargs == 0 else Path(values)
        os.environ[VARIABLES[self.option_strings[0]]] = "1" if path is None else str(path.absolute())


def add_loading_flags(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add flags that are set from then on.

    Args:
        parser: The command's parser.
        *flags: Some of `VARIABLES`; none for all.
    """
    helps = {
        STRICT: "refuse a checkpoint with tensors that the model does not use",
        MODEL_FILE: "the Python file that defines the model, which transformers does not know; it is run",
        TRUST: "run the checkpoint's Python code (auto_map) if transformers needs it; else it never runs",
        NO_GRAPH_CACHE: "trace all graphs again, and store none for other checkpoints of the architecture",
    }
    for flag in flags or VARIABLES:
        arguments: dict[str, Any] = {"metavar": "FILE"} if flag == MODEL_FILE else {"nargs": 0}
        parser.add_argument(flag, action=_Set, default=argparse.SUPPRESS, help=helps[flag], **arguments)


def add_adapter_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--adapter`, which `export.hub.resolve` takes.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="an adapter (LoRA) of PEFT to merge: its folder, or its id on the hub",
    )


def set_flags() -> list[str]:
    """List the flags that are set, as arguments of a command.

    Returns:
        Some of `VARIABLES`, `--model-file` with its path.
    """
    flags = [flag for flag in (STRICT, TRUST, NO_GRAPH_CACHE) if os.environ.get(VARIABLES[flag]) == "1"]
    return [*flags, MODEL_FILE, str(path)] if (path := model_file()) else flags


def model_file() -> Path | None:
    """Return the Python file of `--model-file`.

    Returns:
        Its absolute path; None if the flag is not set.
    """
    path = os.environ.get(VARIABLES[MODEL_FILE])
    return Path(path) if path else None


def defining_file(model_type: object) -> Path | None:
    """Return the Python file that defines a model type that transformers does not have.

    Args:
        model_type: The `model_type` of a config.json.

    Returns:
        The file of `--model-file`, or one of this package (`export.models`); None for other models.
    """
    path = model_file()
    return path if path is not None and own_type(path) == model_type else built_in(model_type)


def own_type(path: Path) -> str:
    """Return the model type of the model that a file defines.

    Args:
        path: The file.

    Returns:
        The file's name without suffix, after `own_` if transformers has such a model type.
    """
    return f"own_{path.stem}" if is_known(path.stem) else path.stem


def is_strict() -> bool:
    """Check for `--strict`.

    Returns:
        Whether it is set.
    """
    return STRICT in set_flags()


def uses_graph_cache() -> bool:
    """Check for `--no-graph-cache`.

    Returns:
        Whether it is not set.
    """
    return NO_GRAPH_CACHE not in set_flags()


def is_trusted() -> bool:
    """Check for `--trust-remote-code`.

    Returns:
        Whether code of a checkpoint may run.
    """
    return TRUST in set_flags()


def needs_code_reason(model_type: str) -> str:
    """Describe a model that only code of its checkpoint can build.

    Args:
        model_type: Its type.

    Returns:
        Why it is not built, and what to do.
    """
    return (
        f"transformers does not know the model type {model_type!r}. The checkpoint has Python "
        f"code for it (auto_map), which does not run: read the code, then give {TRUST} if you trust it"
    )
