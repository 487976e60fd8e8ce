"""Packages: a folder with a model, its tokenizer and its configuration, built by shell commands."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from export import known_answers, shell
from export.circle_commands import GENAI, circle_commands, is_fusing, lower_to_onnx, window_cache_rows
from export.config import CheckpointConfig
from export.graph_specs import GraphSpec, graph_specs
from export.model_traits import attention_traits
from export.options import ITEM_SIZE, CacheForm, WeightsType
from export.package_files import copy_package_files, package_files, stale_package_files
from export.processes import signals_interrupt
from export.resources import Needs, check_disk, estimate_needs, processes_that_fit, quantized_bytes
from export.staging import publish, staging_folder
from export.tflite_commands import Conversion
from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError
from o2o.litertlm.package_files import has_vocabulary
from o2o.quantization.recipes import NONE, find_recipe
from o2o.weights.checkpoint import open_checkpoint

INPUTS = ".built-from"
"""A package's record of what it was built from: the digest of its commands, checkpoint and toolchain."""
MODELS = ("model.circle", "model.tflite", "model.onnx", "model.litertlm")
GENAI_CONFIG = "genai_config.json"
FILES = (*MODELS, "model.onnx.data", GENAI_CONFIG, known_answers.FILE)

SHORT_PREFILL = 8
"""T of one more prefill for LiteRT-LM: near the end of the context, it fails without one that fits."""

PackageFormat = Literal["circle", "tflite", "onnx", "litertlm"]
"""The format of a package's model."""


@dataclass(frozen=True)
class Plan:
    """The steps of a build, and the resources that it needs.

    Attributes:
        steps: The shell commands.
        model: The name of the model's file.
        graphs: The graphs that are exported.
        needs: What their export needs.
        size: Bytes of the model, about.
        disk: Bytes on disk at most, about.
        window_rows: Rows of the KV caches of layers with a window; None if all caches are full.
    """

    steps: Sequence[str]
    model: str
    graphs: Sequence[GraphSpec]
    needs: Needs
    size: int
    disk: int
    window_rows: int | None = None


@dataclass(frozen=True)
class PackageBuilder:
    """Builds one package. The package changes only when all commands have succeeded.

    Attributes:
        checkpoint: The checkpoint's folder.
        package: The folder to fill; nothing outside it is written.
        max_length: S, tokens of context.
        prefill_lengths: T of each prefill; None for 64, 128 and 256 as far as they fit, else S. For LiteRT-LM
            also 8.
        log: Prints a line for the user.
        if_changed: Do nothing if the package was built from the same inputs.
        package_flag: The flag that named `package`, for messages.
        run_command: The command that runs the package, for the last message.
        tokenizer: A folder or a file with the tokenizer, in place of the checkpoint's own.
        models: Files that the commands read, besides those of the checkpoint.
    """

    checkpoint: Path
    package: Path
    max_length: int
    prefill_lengths: Sequence[int] | None
    log: Callable[[str], None]
    if_changed: bool = False
    package_flag: str = "--package"
    run_command: str = "python -m runtime_py.run"
    tokenizer: Path | None = None
    models: Sequence[Path] = ()

    def circle(self, cache: CacheForm | None, dtype: WeightsType) -> None:
        """Build a package of Circle. See `plan` and `build`.

        Args:
            cache: The form of decode's KV cache; None for `static`.
            dtype: The dtype of stored matrices.
        """
        self.build(self.plan("circle", cache=cache, dtype=dtype))

    def tflite(self, recipe: str) -> None:
        """Build a package of TFLite, with AI Edge's signatures. See `plan` and `build`.

        Args:
            recipe: A recipe of `o2o.quantization.recipes`.
        """
        self.build(self.plan("tflite", recipe))

    def plan(
        self,
        format: PackageFormat,
        recipe: str = NONE.name,
        cache: CacheForm | None = None,
        dtype: WeightsType = "float32",
        onnx_form: str = "ort",
        full_caches: bool = False,
    ) -> Plan:
        """Plan a build. Nothing is written, and neither torch nor transformers is imported.

        Args:
            format: The format of the model.
            recipe: A recipe of `o2o.quantization.recipes`.
            cache: The form of decode's KV cache; None for `static`.
            dtype: The dtype of stored matrices, before they are quantized.
            onnx_form: A form of `o2o.lower.onnx`, or `GENAI`, for `onnx`.
            full_caches: See `export.circle_commands.circle_commands`.

        Returns:
            The plan.

        Raises:
            UsageError: The recipe is unknown, options exclude each other, or the model excludes one.
            ModelError: The checkpoint is incomplete.
        """
        recipe = find_recipe(recipe).name
        if format == "litertlm" and self.tokenizer:
            raise UsageError(
                "--tokenizer excludes --format litertlm: put the files into the checkpoint's folder"
            )
        package_files(self.checkpoint, self.tokenizer)  # raises UsageError before anything is built
        if format == "litertlm" and not has_vocabulary(self.checkpoint):
            raise ModelError(
                f"{self.checkpoint} has no tokenizer.json and no tokenizer.model: --format litertlm needs one"
            )
        _check_combination(format, recipe, cache, dtype, self.prefill_lengths)
        full_caches = full_caches or (format == "onnx" and onnx_form == GENAI)  # it knows no window caches
        config = CheckpointConfig.read(self.checkpoint)
        tensors = open_checkpoint(self.checkpoint).tensors
        if cache == "concat" and (special := attention_traits(config, tensors)):
            raise UsageError(
                f"--cache concat needs Circle's ATTENTION, which has no operand for {listed(special)}: leave "
                "--cache out"
            )
        needs = partial(estimate_needs, tensors, config.layers)
        form = cache or "static"
        lengths = self._lengths(format, form)
        graphs = graph_specs(self.max_length, lengths, form)
        if format in ("tflite", "litertlm"):
            steps = Conversion(
                self.checkpoint, self.max_length, lengths or (), recipe, for_litert_lm=format == "litertlm"
            ).commands()
        else:
            steps = circle_commands(
                self.checkpoint, self.max_length, lengths, form, dtype, recipe, full_caches
            )
        if format == "onnx":
            steps.append(lower_to_onnx(onnx_form, self.checkpoint))
        has_window_caches = format in ("circle", "onnx") and form == "static" and not full_caches
        estimate = needs(len(graphs), dtype, embed=False)
        parameters = needs(1, dtype, embed=True).parameters
        size = parameters * ITEM_SIZE[dtype] if recipe == NONE.name else quantized_bytes(parameters, recipe)
        # Before ONNX is written, the Circle model of the same size is complete.
        return Plan(
            steps,
            f"model.{format}",
            graphs,
            estimate,
            size,
            estimate.graphs + size * (1 + (format == "onnx")),
            window_cache_rows(config, graphs) if has_window_caches else None,
        )

    def _lengths(self, format: PackageFormat, cache: CacheForm) -> Sequence[int] | None:
        """Tokens of each prefill; None for the default of `graph_specs`."""
        if format == "onnx":
            return ()
        if self.prefill_lengths is not None or cache == "concat":
            return self.prefill_lengths
        lengths = [spec.tokens for spec in graph_specs(self.max_length, None, cache)[:-1]]
        if format == "litertlm" and lengths[0] > SHORT_PREFILL:
            lengths.insert(0, SHORT_PREFILL)
        return lengths

    def build(self, plan: Plan) -> None:
        """Run the commands of a plan.

        Args:
            plan: The plan.

        Raises:
            UsageError: The package is a file.
            ModelError: A command failed.
            O2oError: The disk has no room.
        """
        self._build(plan.steps, plan.model, plan.disk)

    def check(self, plan: Plan) -> None:
        """Check that the machine and the output folder allow a build.

        Args:
            plan: The plan.

        Raises:
            UsageError: The package is a file.
            O2oError: The disk has no room, or the memory does not suffice.
        """
        self._check_place()
        check_disk(self.package, plan.disk, "the model")
        processes_that_fit(plan.needs.memory, 1)

    def _check_place(self) -> None:
        if self.package.exists() and not self.package.is_dir():
            raise UsageError(f"{self.package_flag} {self.package}: this is a file, not a folder")

    def _build(self, steps: Sequence[str], model: str, size: int) -> None:
        """Run the commands in a temporary folder, then move `model`, of `size` bytes, into the package."""
        self._check_place()
        inputs, record = self._inputs(steps), self.package / INPUTS
        if self.if_changed and (self.package / model).is_file() and _read(record) == inputs:
            self.log(f"{self.package} is up to date")
            return
        check_disk(self.package, size, "the model")
        with signals_interrupt(), staging_folder(self.package.absolute()) as folder:
            try:
                shell.run(steps, folder)
            except shell.StepFailed as error:
                hint = "; --cache static, the default, does without this command" * is_fusing(error.step)
                raise ModelError(f"{error}, {self.package} is unchanged{hint}") from None
            if reason := known_answers.store_known_answers(folder / model):
                self.log(f"the package has no known answers for --self-test: {reason}")
            (folder / INPUTS).write_text(inputs)
            rebuilt = record.exists()  # otherwise these files may be the user's own
            record.unlink(missing_ok=True)
            copy_package_files(self.package, self.checkpoint, tokenizer=self.tokenizer)
            for stale in (
                stale_package_files(self.package, self.checkpoint, self.tokenizer) if rebuilt else ()
            ):
                stale.unlink()
                self.log(f"removed {stale}, which {self.checkpoint} does not have")
            data = f"{model}.data"  # of a large ONNX model
            published = [
                name
                for name in (known_answers.FILE, GENAI_CONFIG, data, model, INPUTS)
                if (folder / name).exists()
            ]
            publish(folder, self.package, published)
        for other in (self.package / name for name in FILES if name not in published):
            if other.exists():  # of an earlier build: a package has one model
                other.unlink()
                self.log(f"removed {other}, which {model} replaces")
        folder_argument = shlex.quote(str(self.package))
        self.log(f"{self.package} is ready: {self.run_command} {folder_argument}")

    def _inputs(self, steps: Sequence[str]) -> str:
        """The digest of everything that the package depends on."""
        root = Path(__file__).resolve().parents[1]
        sources = sorted(path for name in ("export", "o2o") for path in (root / name).rglob("*.py"))
        files = sorted(path for path in self.checkpoint.iterdir() if path.is_file() and _is_input(path))
        files += sorted(package_files(self.checkpoint, self.tokenizer).values()) if self.tokenizer else []
        files += self.models
        digest = hashlib.sha256()
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        digest.update(json.dumps([list(steps), state, sys.version]).encode("utf-8", "surrogatepass"))
        for path in sources:
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
        return digest.hexdigest() + "\n"


def _check_combination(
    format: PackageFormat,
    recipe: str,
    cache: CacheForm | None,
    dtype: WeightsType,
    prefill_lengths: Sequence[int] | None,
) -> None:
    """Raises UsageError for options that exclude each other."""
    is_tflite = format in ("tflite", "litertlm")
    if is_tflite and dtype != "float32":
        raise UsageError(f"--format {format}: give --quantize {dtype} instead of --dtype {dtype}")
    if is_tflite and cache == "concat":
        raise UsageError("--cache concat needs --format circle: TFLite models have static caches")
    if recipe != NONE.name and dtype != "float32":
        raise UsageError(f"--quantize {recipe} excludes --dtype {dtype}: give one of them")
    if format == "onnx" and prefill_lengths:
        raise UsageError("--prefill-lengths excludes --format onnx: one graph reads prompts of any length")


def _is_input(file: Path) -> bool:
    """Whether a file belongs to the checkpoint, and not to a package in the same folder."""
    return file.name not in FILES and not file.name.startswith(".")


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return None
