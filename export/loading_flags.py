"""The flags that decide how a checkpoint is loaded: `--strict` and `--trust-remote-code`.

A flag is set for the process and for its child processes: each command of a conversion loads the checkpoint.

Code in a checkpoint (Python files that `auto_map` of `config.json` names) runs only if the user allows it.
transformers would ask on stdin. Here nothing asks: a model that transformers knows needs no such code, and
another one is refused in one line.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

STRICT = "--strict"
TRUST = "--trust-remote-code"
VARIABLES = {STRICT: "O2O_STRICT", TRUST: "O2O_TRUST_REMOTE_CODE"}
"""The environment variable behind each flag; it is set to 1."""


class _Set(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        os.environ[VARIABLES[self.option_strings[0]]] = "1"


def add_loading_flags(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add flags that are set from then on.

    Args:
        parser: The command's parser.
        *flags: Some of `VARIABLES`; none for all.
    """
    helps = {
        STRICT: "refuse a checkpoint with tensors that the model does not use",
        TRUST: "run the checkpoint's Python code (auto_map) if transformers needs it; else it never runs",
    }
    for flag in flags or VARIABLES:
        parser.add_argument(flag, action=_Set, nargs=0, default=argparse.SUPPRESS, help=helps[flag])


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
    """List the flags that are set.

    Returns:
        Some of `VARIABLES`.
    """
    return [flag for flag, variable in VARIABLES.items() if os.environ.get(variable) == "1"]


def is_strict() -> bool:
    """Check for `--strict`.

    Returns:
        Whether it is set.
    """
    return STRICT in set_flags()


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
