"""Packages of a checkpoint, by the commands of `o2o convert`, all in this process.

`o2o convert` starts a process for each command. Here torch is imported once for all exports, and `o2o pipe`
runs the filters, which write the same bytes as in processes of their own.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from export import __main__ as export_command
from export import parameter_binding
from export.package_builder import PackageBuilder, PackageFormat
from o2o.errors import ModelError
from o2o.verbs import pipe
from tests.families.cases import CONTEXT

LARGE = 64
"""Bytes from which a parameter is a reference, so that tiny models go the way of real ones."""


def convert(
    checkpoint: Path,
    package: Path,
    format: PackageFormat,
    recipe: str = "none",
    prefill_lengths: Sequence[int] | None = None,
) -> Path:
    """Build a package with the default flags.

    Args:
        checkpoint: The checkpoint's folder.
        package: The folder to fill.
        format: The format of the model.
        recipe: A recipe of `o2o.quantization.recipes`.
        prefill_lengths: T of each prefill; None for the default.

    Returns:
        The model's file.

    Raises:
        ModelError: A command failed.
    """
    builder = PackageBuilder(checkpoint, package, CONTEXT, prefill_lengths, lambda line: None)
    plan = builder.plan(format, recipe)
    package.mkdir(parents=True)
    with contextlib.chdir(package), mock.patch.object(parameter_binding, "LARGE", LARGE):
        for step in plan.steps:
            words = shlex.split(step.replace("\\\n", " "))
            if words[1:3] == ["-m", "export"]:
                code = export_command.main([*words[3:], "--jobs", "1"])
            else:
                code = pipe.main([step])
            if code:
                raise ModelError(f"{' '.join(words)}: exit code {code}")
    return package / plan.model
