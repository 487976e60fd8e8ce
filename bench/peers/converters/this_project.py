"""A checkpoint as a TFLite file of this project, by its own command."""

from __future__ import annotations

import sys
from pathlib import Path

from tinyllama.convert_to_tflite import main

RECIPES = {"float32": "none", "int8": "dynamic_int8", "int4": "dynamic_int4_block32"}
PREFILLS = "64,128,256,512"


def convert(checkpoint: Path, output: Path, precision: str, capacity: str) -> int:
    told = {
        "checkpoint_path": checkpoint,
        "prefill_seq_lens": PREFILLS,
        "kv_cache_max_len": capacity,
        "quantize": RECIPES[precision],
        "output_path": output / "model.tflite",
    }
    return main([f"--{flag}={value}" for flag, value in told.items()])


if __name__ == "__main__":
    sys.exit(convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
