"""Convert a checkpoint to GGUF: write it as bfloat16, then quantize it with llama.cpp.

The tokenizer is a list of placeholder words, because prompts are token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import llama_cpp as c
import numpy as np

from bench.peers.converters.gguf_layout import gguf_name, gguf_weight, metadata
from bench.peers.converters.safetensors import tensors, to_float32

TYPES = {
    "F16": c.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def write(checkpoint: Path, file: Path) -> None:
    """Write a checkpoint as GGUF in bfloat16.

    Args:
        checkpoint: Its folder.
        file: The new file.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in metadata(config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{k}>" for k in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    # Ids 0 to 2 are special tokens. llama.cpp also needs normal ones, to find the line break.
    control = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types([*control, *[gguf.TokenType.NORMAL] * (config["vocab_size"] - 3)])
    for name, bits in tensors(checkpoint):
        weight = gguf_weight(name, bits, config)
        if weight.ndim == 1:  # norms are float32 in every GGUF
            writer.add_tensor(gguf_name(name), to_float32(weight))
        else:
            raw = weight.view(np.uint8)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(checkpoint: Path, output: Path, precision: str) -> None:
    """Convert a checkpoint.

    Args:
        checkpoint: Its folder.
        output: The folder for `model.gguf`.
        precision: A key of `TYPES`.

    Raises:
        RuntimeError: llama.cpp cannot quantize it.
    """
    bfloat16 = output / "whole.gguf"
    write(checkpoint, bfloat16)
    parameters = c.llama_model_quantize_default_params()
    parameters.ftype = TYPES[precision]
    parameters.nthread = 2
    failed = c.llama_model_quantize(str(bfloat16).encode(), str(output / "model.gguf").encode(), parameters)
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    bfloat16.unlink()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
