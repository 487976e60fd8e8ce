"""Convert a checkpoint with onnxruntime-genai's model builder and its defaults for the CPU."""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path


def convert(checkpoint: Path, output: Path, precision: str) -> None:
    """Convert a checkpoint with the builder's command: its functions change from release to release.

    Args:
        checkpoint: Its folder.
        output: The folder for the model.
        precision: Its `-p` option.
    """
    with tempfile.TemporaryDirectory() as cache:
        flags = {"-m": "random", "-i": checkpoint, "-o": output, "-p": precision, "-e": "cpu", "-c": cache}
        sys.argv[1:] = [str(word) for flag in flags.items() for word in flag]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
