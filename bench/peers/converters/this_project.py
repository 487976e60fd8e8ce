"""Convert a checkpoint with this project's commands: to TFLite, or to the Circle file of a package.

Quantized Circle files are converted from an existing float32 one if there is one, as export takes longest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from export.config import CheckpointConfig

RECIPES = {
    "float32": "none",
    "int8": "dynamic_int8",
    "int4": "dynamic_int4_block32",
    "int4-head": "dynamic_int4_block32_head",
}
PREFILLS = "64,128,256,512"


def run(*command: str | Path) -> None:
    """Run a Python program of this project.

    Args:
        command: Its arguments.
    """
    subprocess.run([sys.executable, *map(str, command)], check=True)


def tflite(checkpoint: Path, output: Path, precision: str, capacity: str) -> None:
    """Convert a checkpoint to TFLite.

    Args:
        checkpoint: Its folder.
        output: The folder for `model.tflite`.
        precision: A key of `RECIPES`.
        capacity: S, the number of cache rows.
    """
    flags = {
        "checkpoint_path": checkpoint,
        "prefill_seq_lens": PREFILLS,
        "kv_cache_max_len": capacity,
        "quantize": RECIPES[precision],
        "output_path": output / "model.tflite",
    }
    run("tinyllama/convert_to_tflite.py", *(f"--{flag}={value}" for flag, value in flags.items()))


def circle(checkpoint: Path, output: Path, precision: str, capacity: str) -> None:
    """Convert a checkpoint to Circle.

    Args:
        checkpoint: Its folder.
        output: The folder for `model.circle`.
        precision: A key of `RECIPES`.
        capacity: S, the number of cache rows.
    """
    float32 = checkpoint.with_name(f"this_project-float32-circle-{capacity}") / "model.circle"
    if not float32.is_file():
        package = output if precision == "float32" else output / "float32"
        lengths = ["--max-length", capacity, "--prefill-lengths", PREFILLS]
        run("-m", "export.pipeline", "--model", checkpoint, "--package", package, *lengths)
        float32 = package / "model.circle"
    if precision != "float32":
        quantize = ["-m", "o2o", "quantize.weights.py", "--recipe", RECIPES[precision]]
        run(*quantize, float32, "-o", output / "model.circle")
        if float32.is_relative_to(output):
            float32.unlink()


def litertlm(checkpoint: Path, output: Path, precision: str, capacity: str) -> None:
    """Convert a checkpoint to the file of LiteRT-LM, with a tokenizer that has a word `tN` for each id N.

    Args:
        checkpoint: Its folder.
        output: The folder for `model.litertlm`.
        precision: A key of `RECIPES`.
        capacity: S, the number of cache rows.
    """
    file = checkpoint.with_name(f"this_project-{precision}-tflite-{capacity}") / "model.tflite"
    if not file.is_file():
        tflite(checkpoint, output, precision, capacity)
        file = output / "model.tflite"
    with tempfile.TemporaryDirectory(dir=output) as folder:
        vocab_size = CheckpointConfig.read(checkpoint).vocab_size
        words = models.WordLevel({f"t{number}": number for number in range(vocab_size)}, unk_token="t0")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(f"{folder}/tokenizer.json")
        pack = ["-m", "o2o", "pack.litertlm.py", file, "--tokenizer", folder]
        run(*pack, "-o", output / "model.litertlm")
    if file.is_relative_to(output):
        file.unlink()


if __name__ == "__main__":
    form = {"tflite": tflite, "circle": circle, "litertlm": litertlm}[sys.argv[5]]
    form(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
