"""Convert a checkpoint to a TFLite file with litert-torch's command for transformers models."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = {"float32": [], "int8": ["--quantization_recipe", "dynamic_wi8_afp32"]}
FILES = {"float32": "model.tflite", "int8": "model_quantized.tflite"}
PREFILLS = (64, 128, 256, 512)


def convert(checkpoint: Path, output: Path, precision: str, capacity: str) -> None:
    """Convert a checkpoint.

    Args:
        checkpoint: Its folder.
        output: The folder for `model.tflite`.
        precision: A key of `RECIPES`.
        capacity: S, the number of cache rows.
    """
    command = [sys.executable, "-m", "litert_torch.generative.export_hf", "--model", str(checkpoint)]
    command += ["--prefill_lengths", str([*PREFILLS]), "--cache_length", capacity, *RECIPES[precision]]
    # The TFLite file is one of its temporary files, which it bundles for another runtime.
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        flags = ["--keep_temporary_files", "True", "--bundle_litert_lm", "False"]
        subprocess.run([*command, *flags, "--output_dir", folder], check=True)
        (Path(folder) / FILES[precision]).rename(output / "model.tflite")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
