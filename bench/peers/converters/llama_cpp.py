"""A checkpoint as GGUF: written as bfloat16, then quantised by llama.cpp itself.

The tokenizer is a list of words without meaning: prompts are ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import llama_cpp as c
import numpy as np

from bench.peers.converters.gguf_layout import laid_out, metadata, name_of
from bench.peers.converters.safetensors import tensors, widened

TYPES = {
    "F16": c.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def write(checkpoint: Path, file: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in metadata(config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{k}>" for k in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    # Ids 0 to 2 have their usual meaning, the rest are words: llama.cpp wants to know a line's end, too.
    control = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types([*control, *[gguf.TokenType.NORMAL] * (config["vocab_size"] - 3)])
    for name, bits in tensors(checkpoint):
        weight = laid_out(name, bits, config)
        if weight.ndim == 1:  # norms are float32 in every GGUF
            writer.add_tensor(name_of(name), widened(weight))
        else:
            raw = weight.view(np.uint8)
            writer.add_tensor(name_of(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(checkpoint: Path, output: Path, precision: str) -> None:
    whole = output / "whole.gguf"
    write(checkpoint, whole)
    parameters = c.llama_model_quantize_default_params()
    parameters.ftype = TYPES[precision]
    parameters.nthread = 2
    failed = c.llama_model_quantize(str(whole).encode(), str(output / "model.gguf").encode(), parameters)
    if failed:
        raise RuntimeError(f"llama_model_quantize gave {failed}")
    whole.unlink()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
