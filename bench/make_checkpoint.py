"""Write a random checkpoint with the shape of a real model, in Hugging Face's format.

    python bench/make_checkpoint.py DIR [--shape tinyllama-1.1b] [--dtype bfloat16] [--shards 1] ...

For benchmarks: the cost of export, filters and runtime depends on the shape of a model, not on its training.
The tokenizer is the demo model's. Tensors are drawn one at a time into the file. The largest tensor sets the
peak memory. Drawing a billion weights takes a few seconds.

Each weight takes 16 random bits, which choose one of 65,536 quantiles of a normal distribution. Matrices have
a standard deviation of 1.5 / sqrt(columns). Activations then keep their size from layer to layer. Logits have
a standard deviation of about 1.5, so that tokens vary and the two most likely ones rarely have almost equal
logits. Norms are 1 with a noise of 0.1. A tensor depends only on the seed and its name, not on shards, format
or number of layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("make_checkpoint.py")

import argparse
import json
import math
import os
import shutil
import statistics
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.errors import UsageError
from o2o.streams import open_output

DEMO = Path(__file__).resolve().parents[1] / "tinyllama" / "demo" / "checkpoint"
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

# hidden, intermediate, layers, heads, key/value heads, head_dim, vocabulary, positions
SHAPES = {
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 64, 32000, 2048),
    "135m": (576, 1536, 30, 9, 3, 64, 49152, 2048),  # SmolLM-135M
    "15m": (288, 768, 6, 6, 6, 48, 32000, 256),  # stories15M
}
SIZES = ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab", "positions")
TIED = {"135m", "15m"}

DTYPES: dict[str, tuple[str, Any]] = {  # names in safetensors, numpy dtypes
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
    "float16": ("F16", np.float16),
    "float32": ("F32", np.float32),
}

Shapes = dict[str, tuple[int, ...]]


def configuration(size: Mapping[str, int], tied: bool, dtype: str) -> dict[str, Any]:
    """Return the config.json of a Llama.

    Args:
        size: A number for each of `SIZES`.
        tied: Whether embedding and head share their weights.
        dtype: A key of `DTYPES`.

    Returns:
        The content of config.json.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": dtype,
        "eos_token_id": 2,
        "head_dim": size["head_dim"],
        "hidden_act": "silu",
        "hidden_size": size["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": size["intermediate"],
        "max_position_embeddings": size["positions"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": size["heads"],
        "num_hidden_layers": size["layers"],
        "num_key_value_heads": size["kv_heads"],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": size["vocab"],
    }


def tensors(size: Mapping[str, int], tied: bool) -> Shapes:
    """List the parameters of a Llama.

    Args:
        size: A number for each of `SIZES`.
        tied: Whether embedding and head share their weights.

    Returns:
        The shape of each parameter, in the order of the model.
    """
    d, i, v = size["hidden"], size["intermediate"], size["vocab"]
    queries, keys = size["heads"] * size["head_dim"], size["kv_heads"] * size["head_dim"]
    layer: Shapes = {
        "self_attn.q_proj": (queries, d),
        "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d),
        "self_attn.o_proj": (d, queries),
        "mlp.gate_proj": (i, d),
        "mlp.up_proj": (i, d),
        "mlp.down_proj": (d, i),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    shapes: Shapes = {"model.embed_tokens.weight": (v, d)}
    for k in range(size["layers"]):
        shapes |= {f"model.layers.{k}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (d,)
    return shapes if tied else shapes | {"lm_head.weight": (v, d)}


class Draws:
    """Random tensors of one dtype."""

    def __init__(self, dtype: str, seed: int) -> None:
        normal = statistics.NormalDist()
        self._quantiles = np.array([normal.inv_cdf((k + 0.5) / 65536) for k in range(65536)], np.float32)
        self._dtype = DTYPES[dtype][1]
        self._seed = seed

    def write(self, file: BinaryIO, name: str, shape: tuple[int, ...], piece: int = 1 << 22) -> None:
        """Draw a tensor into a file, in C order.

        Args:
            file: The file, at the tensor's position.
            name: The name of the tensor.
            shape: Its shape.
            piece: The number of elements drawn at a time.
        """
        mean, deviation = (1, 0.1) if len(shape) == 1 else (0, 1.5 / math.sqrt(shape[-1]))
        mean *= not name.endswith("bias")
        table = mean + deviation * self._quantiles
        # numpy cannot write ml_dtypes' bfloat16, but unsigned integers of the same size.
        table = table.astype(self._dtype).view(f"u{np.dtype(self._dtype).itemsize}")
        draw = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        count = math.prod(shape)
        for start in range(0, count, piece):
            bits = draw.integers(0, 65536, min(piece, count - start), dtype=np.uint16)
            file.write(table[bits].data)


def split(shapes: Shapes, shards: int) -> Iterator[Shapes]:
    """Split parameters into shards of about the same size.

    Args:
        shapes: The shape of each parameter.
        shards: The number of shards, at most the number of parameters.

    Yields:
        The shapes of each shard, in order.
    """
    left = sum(map(math.prod, shapes.values()))
    names = list(shapes)
    for remaining in range(shards, 0, -1):
        goal, part = left / remaining, dict[str, tuple[int, ...]]()
        while names and (remaining == 1 or not part or sum(map(math.prod, part.values())) < goal):
            if part and len(names) < remaining:  # each remaining shard needs one
                break
            name = names.pop(0)
            part[name] = shapes[name]
        left -= sum(map(math.prod, part.values()))
        yield part


def write_safetensors(path: Path, shapes: Shapes, dtype: str, draws: Draws) -> None:
    """Write a safetensors file.

    Args:
        path: The file.
        shapes: The shape of each tensor.
        dtype: A key of `DTYPES`.
        draws: The random tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype][1]).itemsize
        header[name] = {"dtype": DTYPES[dtype][0], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open_output(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            draws.write(file, name, shape)


def _write_bin(path: Path, shapes: Shapes, dtype: str, draws: Draws) -> None:
    """Write a file as `torch.save` does: it leaves room for the data, which is drawn into its place."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.serialization import skip_data

    from o2o.weights.pytorch_file import read_header  # imports torch

    with FakeTensorMode():
        hollow = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape in shapes.items()}
    part = path.with_name(f".{path.name}.part")
    try:
        with skip_data(materialize_fake_tensors=True):
            torch.save(hollow, part)
        with open(part, "r+b") as file:
            for name, stored in read_header(part).items():
                file.seek(stored.offset)
                draws.write(file, name, stored.shape)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


WRITERS = {
    "safetensors": (write_safetensors, "model", "safetensors"),
    "bin": (_write_bin, "pytorch_model", "bin"),
}


def make(
    directory: Path, size: Mapping[str, int], *, tied: bool, dtype: str, shards: int, format: str, seed: int
) -> None:
    """Write a checkpoint. `config.json` comes last: without it the folder is not a checkpoint.

    Args:
        directory: The folder.
        size: A number for each of `SIZES`.
        tied: Whether embedding and head share their weights.
        dtype: A key of `DTYPES`.
        shards: The number of files.
        format: A key of `WRITERS`.
        seed: The seed of the random numbers.

    Raises:
        UsageError: The folder has weights already, or there are more shards than tensors.
        OSError: A file cannot be written.
    """
    shapes, draws = tensors(size, tied), Draws(dtype, seed)
    if not 1 <= shards <= len(shapes):
        raise UsageError(f"--shards {shards}: give 1 to {len(shapes)}, the number of tensors")
    directory.mkdir(parents=True, exist_ok=True)
    if there := [file.name for file in directory.iterdir() if file.suffix in (".safetensors", ".bin")]:
        raise UsageError(f"{directory} has weights already ({there[0]}): use another folder, or remove them")
    write, stem, suffix = WRITERS[format]
    weight_map: dict[str, str] = {}
    for k, part in enumerate(split(shapes, shards), start=1):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{k:05}-of-{shards:05}.{suffix}"
        write(directory / file, part, dtype, draws)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(map(math.prod, shapes.values())) * np.dtype(DTYPES[dtype][1]).itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / f"{stem}.{suffix}.index.json", index)
    for name in BESIDE:
        with open(DEMO / name, "rb") as source, open_output(directory / name) as copy:
            shutil.copyfileobj(source, copy)
    _write_json(directory / "config.json", configuration(size, tied, dtype))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with open_output(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b", help="default: %(default)s")
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="default: the shape's")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of files (default: 1)")
    parser.add_argument("--format", choices=WRITERS, default="safetensors", help="default: %(default)s")
    parser.add_argument(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="one matrix for embedding and logits; default: the shape's",
    )
    parser.add_argument("--seed", type=int, default=0)
    return command.run("make_checkpoint.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    size = dict(zip(SIZES, SHAPES[args.shape], strict=True))
    size |= {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    for name, number in size.items():
        if number < 1:
            raise UsageError(f"--{name.replace('_', '-')} {number}: give at least 1")
    if size["heads"] % size["kv_heads"]:
        raise UsageError(f"--heads {size['heads']} is not a multiple of --kv-heads {size['kv_heads']}")
    if size["head_dim"] % 2:
        raise UsageError(f"--head-dim {size['head_dim']} is odd: RoPE rotates pairs")
    tied = args.tied if args.tied is not None else args.shape in TIED
    make(
        args.directory,
        size,
        tied=tied,
        dtype=args.dtype,
        shards=args.shards,
        format=args.format,
        seed=args.seed,
    )


if __name__ == "__main__":
    sys.exit(main())
