"""Packages of a decoder in ONNX that another tool exported: `o2o convert decoder.onnx`.

All graphs of the package come from the same file. By `fix.shape.py` each gets static caches and a number of
tokens. By `raise.circle.py` it becomes Circle. Then the filters are those for a checkpoint.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.circle_commands import FUSE_MERGED, GENAI, LOWER_TO_ONNX
from export.config import CheckpointConfig
from export.graph_specs import PREFILL_LENGTHS, GraphSpec, graph_specs
from export.resources import Needs, quantized_bytes
from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError
from o2o.quantization.recipes import NONE, find_recipe
from o2o.rewriting.static_caches.interface import SMALLEST_PAST

NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx")
"""Files of a folder, the preferred one first."""
FOLDERS = (".", "onnx")
"""Places of ONNX files in a folder; the second is that of checkpoints for transformers.js."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf")
GENAI_CONFIG = "genai_config.json"
MAX_LENGTH = 1024
GRAPH = """
fix.shape.py --cache-length {capacity} --tokens {tokens} {model} | raise.circle.py > {file}
"""
CIRCLE = """
merge.circles.py --sig-names {names} {graphs} {fuse}\\
  | fuse.bmm_lhs_const.py | downcast.input_ids.py {quantize}| gc.py -o model.circle
"""
TFLITE = """
merge.circles.py --sig-names {names} {graphs} \\
  | fuse.attention.py --core | fuse.rms_norm.py | fuse.rope.py | fuse.bmm_lhs_const.py \\
  | downcast.input_ids.py {quantize}| lower.litert.py --flash never | sign.ai_edge.py | gc.py {output}
"""
QUANTIZE = "| quantize.weights.py --recipe {recipe} "
OUTPUTS = {
    "tflite": "-o model.tflite",
    "litertlm": "| pack.litertlm.py --tokenizer {folder} -o model.litertlm",
}


def find_onnx(model: str) -> Path | None:
    """Find the decoder that a user names.

    Args:
        model: A file, or a folder.

    Returns:
        The ONNX file. None for something else, and for a folder that has weights of another format, too.
    """
    path = Path(model)
    if path.is_file():
        return path if path.suffix == ".onnx" else None
    if not path.is_dir() or any(any(path.glob(pattern)) for pattern in WEIGHTS):
        return None
    for folder in (path / name for name in FOLDERS):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
        if len(files := sorted(folder.glob("*.onnx"))) == 1:
            return files[0]
    return None


@dataclass(frozen=True)
class OnnxDecoder:
    """A decoder in ONNX, and what its package shall have.

    Attributes:
        file: The ONNX file.
        max_length: S, tokens of context; None for `MAX_LENGTH`, or the positions that config.json or
            genai_config.json names.
        prefill_lengths: T of each prefill; None for 64, 128 and 256, as far as they fit.
    """

    file: Path
    max_length: int | None
    prefill_lengths: Sequence[int] | None

    @property
    def folder(self) -> Path:
        """The folder with the tokenizer and config.json."""
        parent = self.file.absolute().parent
        return parent.parent if parent.name == FOLDERS[1] else parent

    @property
    def capacity(self) -> int:
        """S, tokens of context."""
        if self.max_length is not None:
            return self.max_length
        try:
            positions = CheckpointConfig.read(self.folder).positions
        except ModelError:
            positions = None
        return min(MAX_LENGTH, positions or self._context_of_genai() or MAX_LENGTH)

    def _context_of_genai(self) -> int | None:
        """The tokens of context that onnxruntime-genai's own configuration names; None without it."""
        try:
            content = json.loads((self.folder / GENAI_CONFIG).read_bytes())
            return int(content["model"]["context_length"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def graphs(self, format: str) -> Sequence[GraphSpec]:
        """List the graphs of a package.

        Args:
            format: The format of the package.

        Returns:
            Prefills, then decode. ONNX reads prompts of any length by decode.

        Raises:
            UsageError: The lengths exclude each other.
        """
        room = self.capacity - SMALLEST_PAST
        lengths = self.prefill_lengths or [length for length in PREFILL_LENGTHS if length <= room]
        specs = graph_specs(self.capacity, lengths or [max(2, room // 2)], "static")
        return specs[-1:] if format == "onnx" else specs

    def commands(self, format: str, recipe: str, onnx_form: str) -> list[str]:
        """List the commands that write the model into the working folder.

        Args:
            format: The format of the package.
            recipe: A recipe of `o2o.quantization.recipes`.
            onnx_form: A form of `o2o.lower.onnx`, for ONNX.

        Returns:
            The commands, in order.

        Raises:
            UsageError: The recipe is unknown, or options exclude each other.
        """
        recipe = find_recipe(recipe).name
        if onnx_form == GENAI:
            raise UsageError("--onnx-form genai needs a checkpoint: give its folder in place of an ONNX file")
        if format == "onnx" and self.prefill_lengths:
            raise UsageError(
                "--prefill-lengths excludes --format onnx: one graph reads prompts of any length"
            )
        specs, file = self.graphs(format), shlex.quote(str(self.file.absolute()))
        steps = [
            GRAPH.format(capacity=self.capacity, tokens=spec.tokens, model=file, file=spec.file)
            for spec in specs
        ]
        options = {
            "names": shlex.quote(";".join(spec.signature for spec in specs)),
            "graphs": " ".join(spec.file for spec in specs),
            "quantize": QUANTIZE.format(recipe=recipe) * (recipe != NONE.name),
        }
        if format in OUTPUTS:
            output = OUTPUTS[format].format(folder=shlex.quote(str(self.folder)))
            return [*steps, TFLITE.format(**options, output=output)]
        steps.append(CIRCLE.format(**options, fuse=FUSE_MERGED))
        return [*steps, LOWER_TO_ONNX.format(form=onnx_form)] if format == "onnx" else steps

    @property
    def files(self) -> list[Path]:
        """The ONNX file, and those of its folder that may be its external data."""
        data = [path for path in self.file.parent.iterdir() if ".onnx" in path.name or ".data" in path.name]
        return [self.file, *sorted(path for path in data if path.is_file() and path != self.file)]

    def needs(self, format: str, recipe: str) -> tuple[Needs, int]:
        """Estimate what the build needs, and the size of the model.

        Args:
            format: The format of the package.
            recipe: A recipe of `o2o.quantization.recipes`.

        Returns:
            The needs, and bytes of the model.
        """
        stored = sum(path.stat().st_size for path in self.files)
        size = stored if recipe == NONE.name else min(stored, quantized_bytes(stored // 4, recipe))
        graphs = stored * len(self.graphs(format))
        return Needs(stored // 4, stored, size, graphs, stored), size

    def describe(self, package: Path, commands: Sequence[str], format: str) -> Iterator[str]:
        """Describe the plan.

        Args:
            package: The package's folder.
            commands: The commands.
            format: The format of the package.

        Yields:
            Lines for the user.
        """
        yield f"decoder     {self.file}"
        yield f"package     {package / f'model.{format}'}"
        yield f"context     {self.capacity} tokens"
        yield f"graphs      {listed([spec.signature for spec in self.graphs(format)])}"
        yield "commands"
        for step in commands:
            yield from (f"    {line}" for line in step.strip().splitlines())
