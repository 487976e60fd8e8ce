"""Packages: a folder with a model, its tokenizer and its configuration, built by shell commands."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export import shell
from export.circle_commands import circle_commands, is_fusing
from export.config import CheckpointConfig
from export.families import family_of
from export.graph_specs import graph_specs
from export.options import CacheForm, WeightsType
from export.package_files import copy_package_files
from export.processes import signals_interrupt
from export.resources import check_disk, estimate_needs
from export.staging import publish, staging_folder
from export.tflite_commands import Conversion
from o2o.errors import ModelError, UsageError
from o2o.weights.checkpoint import open_checkpoint

INPUTS = ".built-from"
"""A package's record of what it was built from: the digest of its commands, checkpoint and toolchain."""
MODELS = ("model.circle", "model.tflite")


@dataclass(frozen=True)
class PackageBuilder:
    """Builds one package. The package changes only when all commands have succeeded.

    Attributes:
        checkpoint: The checkpoint's folder.
        package: The folder to fill; nothing outside it is written.
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill; None for 64, 128 and 256 as far as they fit, else S.
        log: Prints a line for the user.
        if_changed: Do nothing if the package was built from the same inputs.
    """

    checkpoint: Path
    package: Path
    max_length: int
    prefill_lengths: Sequence[int] | None
    log: Callable[[str], None]
    if_changed: bool = False

    def circle(self, cache: CacheForm | None, dtype: WeightsType) -> None:
        """Build a package of Circle.

        Args:
            cache: The form of decode's KV cache; None for the default of the model's family.
            dtype: The dtype of stored matrices.

        Raises:
            UsageError: Options exclude each other, or the model excludes one.
            ModelError: The checkpoint is incomplete, or a command failed.
            O2oError: The disk has no room.
        """
        form = cache or self._cache_for_family()
        steps = circle_commands(self.checkpoint, self.max_length, self.prefill_lengths, form, dtype)
        tensors = open_checkpoint(self.checkpoint).tensors
        self._build(steps, "model.circle", estimate_needs(tensors, 0, 1, dtype, embed=True).bound)

    def tflite(self, recipe: str) -> None:
        """Build a package of TFLite, with AI Edge's signatures.

        Args:
            recipe: A recipe of `o2o.quantization.recipes`.

        Raises:
            UsageError: The recipe is unknown, options exclude each other, or the model excludes one.
            ModelError: The checkpoint is incomplete, or a command failed.
            O2oError: The disk has no room.
        """
        prefill_lengths = self.prefill_lengths
        if prefill_lengths is None:
            graphs = graph_specs(self.max_length, None, "static")
            prefill_lengths = [spec.tokens for spec in graphs if spec.signature != "decode"]
        conversion = Conversion(self.checkpoint, self.max_length, prefill_lengths, recipe)
        tensors = open_checkpoint(self.checkpoint).tensors
        parameters = estimate_needs(tensors, 0, 1, "float32", embed=True).parameters
        self._build(conversion.commands(), "model.tflite", conversion.size(parameters))

    def _cache_for_family(self) -> CacheForm:
        config = CheckpointConfig.read(self.checkpoint)
        family = family_of(config)
        if family.fuses:
            return "concat"
        self.log(
            f"this {config.model_type} model {family.unfusable_reason}, which fuse.attention.py does not "
            "fuse: using --cache static"
        )
        return "static"

    def _build(self, steps: Sequence[str], model: str, size: int) -> None:
        """Run the commands in a temporary folder, then move `model`, of `size` bytes, into the package."""
        if self.package.exists() and not self.package.is_dir():
            raise UsageError(f"--package {self.package}: this is a file, not a folder")
        inputs, record = self._inputs(steps), self.package / INPUTS
        if self.if_changed and (self.package / model).is_file() and _read(record) == inputs:
            self.log(f"{self.package} is up to date")
            return
        check_disk(self.package, size, "the model")
        with signals_interrupt(), staging_folder(self.package) as folder:
            try:
                shell.run(steps, folder)
            except shell.StepFailed as error:
                hint = "; --cache static leaves attention unfused" * is_fusing(error.step)
                raise ModelError(f"{error}, {self.package} is unchanged{hint}") from None
            (folder / INPUTS).write_text(inputs)
            record.unlink(missing_ok=True)
            copy_package_files(self.package, self.checkpoint)
            publish(folder, self.package, (model, INPUTS))
        for other in (self.package / name for name in MODELS if name != model):
            if other.exists():  # the model of an earlier build: a package has one model
                other.unlink()
                self.log(f"removed {other}, which {model} replaces")
        folder_argument = shlex.quote(str(self.package))
        self.log(f"{self.package} is ready: python -m runtime_py.run {folder_argument}")

    def _inputs(self, steps: Sequence[str]) -> str:
        """The digest of everything that the package depends on."""
        root = Path(__file__).resolve().parents[1]
        sources = sorted(path for name in ("export", "o2o") for path in (root / name).rglob("*.py"))
        files = sorted(path for path in self.checkpoint.iterdir() if path.is_file() and _is_input(path))
        digest = hashlib.sha256()
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        digest.update(json.dumps([list(steps), state, sys.version]).encode("utf-8", "surrogatepass"))
        for path in sources:
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
        return digest.hexdigest() + "\n"


def _is_input(file: Path) -> bool:
    """Whether a file belongs to the checkpoint, and not to a package in the same folder."""
    return file.name not in MODELS and not file.name.startswith(".")


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return None
