"""Convert models of several families at their real size, with random weights, and measure it.

    python bench/families.py [--shapes smollm-135m qwen2.5-0.5b ...] [--folder DIR] [--recipe dynamic_int8]

For each shape: seconds and memory of `o2o convert`, the size of the model, and tokens per second of decoding
after 128 tokens on LiteRT, with attention as one operator (default) and with the operators that transformers
computes it with. Both packages take turns.

Memory is the peak of the whole process tree, sampled every 50 ms: the private memory of all processes, and
with it the pages of files that they map, which the system can drop at any time. Needs as much disk as the
largest checkpoint and package, 8 GB for Phi-2. Each shape's files are removed when it is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("families.py")

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil

from bench.make_checkpoint import BESIDE, DEMO, Draws, write_safetensors
from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.silence_stderr import suppressed_warnings
from runtime_py.package import Package

LENGTH = 1024
"""S, tokens of context."""
CONTEXT, TOKENS = 128, 24
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
OPENELM = {
    "vocab_size": 32000,
    "head_dim": 64,
    "num_gqa_groups": 4,
    "max_context_length": 2048,
    "qkv_multipliers": [0.5, 1.0],
    "ffn_multipliers": [0.5, 4.0],
    "ffn_dim_divisor": 256,
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
    "rope_freq_constant": 10000,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm-135m": (
        "llama",
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        | {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "llama-3.2-1b": (
        "llama",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
        | {"max_position_embeddings": 131072, "rope_parameters": LLAMA3},
    ),
    "gemma-2b": (
        "gemma",
        {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "head_dim": 256}
        | {"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 256000},
    ),
    "phi-2": (
        "phi",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "vocab_size": 51200}
        | {"num_attention_heads": 32, "partial_rotary_factor": 0.4},
    ),
    "openelm-270m": ("openelm", OPENELM | {"num_transformer_layers": 16, "model_dim": 1280}),
    "openelm-3b": (
        "openelm",
        OPENELM | {"num_transformer_layers": 36, "model_dim": 3072, "head_dim": 128},
    ),
}
"""{name: model_type and fields of config.json}, as in the checkpoints of these names."""


def make(directory: Path, shape: str) -> None:
    """Write a random checkpoint in bfloat16, one tensor at a time.

    Args:
        directory: The folder to create.
        shape: A key of `SHAPES`.
    """
    model_type, fields = SHAPES[shape]
    directory.mkdir(parents=True)
    for name in BESIDE:
        shutil.copy(DEMO / name, directory / name)
    if model_type == "openelm":
        (directory / "config.json").write_text(json.dumps({"model_type": model_type, **fields}))
        shapes = openelm_tensors(fields)
    else:
        shapes = transformers_tensors(directory, model_type, fields)
    write_safetensors(directory / "model.safetensors", shapes, "bfloat16", Draws("bfloat16", 0))


def transformers_tensors(
    directory: Path, model_type: str, fields: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Write config.json of a model of transformers.

    Args:
        directory: The checkpoint's folder.
        model_type: The family.
        fields: The sizes.

    Returns:
        {name: shape} of its parameters.
    """
    from transformers import AutoConfig

    from export.model import LanguageModel

    with suppressed_warnings():
        config = AutoConfig.for_model(model_type, **fields)
        config.dtype = "bfloat16"
        model = LanguageModel(config)
    config.architectures = [type(model.module).__name__]
    config.save_pretrained(directory)
    return model.parameters


def openelm_tensors(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """List the tensors of an OpenELM under Apple's names.

    Args:
        fields: The fields of its config.json.

    Returns:
        {name: shape}.
    """
    from export.models.openelm import get_model_config

    config = get_model_config(fields)
    D, H = config.hidden_size, config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"token_embeddings": (config.vocab_size, D), "norm": (D,)}
    for layer in range(config.num_hidden_layers):
        N, K = config.num_attention_heads[layer], config.num_key_value_heads[layer]
        width, name = config.intermediate_size[layer], f"layers.{layer}"
        tensors |= {f"{name}.attn.qkv_proj": ((N + 2 * K) * H, D), f"{name}.attn.out_proj": (D, N * H)}
        tensors |= {f"{name}.ffn.proj_1": (2 * width, D), f"{name}.ffn.proj_2": (D, width)}
        tensors |= {f"{name}.attn_norm": (D,), f"{name}.ffn_norm": (D,)}
        tensors |= {f"{name}.attn.q_norm": (H,), f"{name}.attn.k_norm": (H,)}
    return {f"transformer.{name}.weight": shape for name, shape in tensors.items()}


@dataclass
class Memory:
    """The peak memory of a process tree, in bytes.

    Attributes:
        private: Memory that only these processes hold.
        total: The same and mapped files, each page once.
    """

    private: int = 0
    total: int = 0

    def sample(self, root: psutil.Process) -> None:
        """Look at all processes once.

        Args:
            root: The process whose descendants count, too.
        """
        private = total = 0
        with contextlib.suppress(psutil.Error, OSError):
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    fields = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in fields}
                    private += kilobytes["Pss_Anon"] + kilobytes.get("Pss_Shmem", 0)
                    total += kilobytes["Pss"]
        self.private, self.total = max(self.private, private << 10), max(self.total, total << 10)


def measured(command: Sequence[object], log: Path) -> tuple[float, Memory]:
    """Run a command.

    Args:
        command: Its words.
        log: A file that receives its output.

    Returns:
        Seconds, and the peak memory of it and its descendants.

    Raises:
        SystemExit: It fails.
    """
    memory, ended = Memory(), threading.Event()
    started = time.perf_counter()
    with open(log, "wb") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=output)
        root = psutil.Process(process.pid)

        def watch() -> None:
            while not ended.wait(0.05):
                memory.sample(root)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} failed ({code}): {log.read_text()[-2000:]}")
    return seconds, memory


def unfused(checkpoint: Path, package: Path, recipe: str) -> None:
    """Build the package without the core of attention, by the same commands.

    Args:
        checkpoint: The checkpoint's folder.
        package: The folder to fill.
        recipe: A recipe of `o2o.quantization.recipes`.
    """
    from export import shell
    from export.package_builder import PackageBuilder

    builder = PackageBuilder(checkpoint, package, LENGTH, None, lambda line: None)
    package.mkdir()
    for step in builder.plan("circle", recipe).steps:
        plain = step.replace("--attn-implementation grouped", "--attn-implementation eager")
        shell.run([plain.replace("| fuse.attention.py ", "")], package)
    for name in BESIDE:
        shutil.copy(checkpoint / name, package / name)


def decoding(packages: Sequence[Path], rounds: int) -> list[float]:
    """Measure decoding; the packages take turns.

    Args:
        packages: The packages.
        rounds: How often each is measured.

    Returns:
        Tokens per second of each: the median of all steps.
    """
    seconds: list[list[float]] = [[] for _ in packages]
    prompt = [1 + number % 1000 for number in range(CONTEXT)]
    with contextlib.ExitStack() as stack:
        sessions = []
        for package in packages:
            engine = stack.enter_context(closing(Package.load(package).engine(engine="litert")))
            sessions.append(stack.enter_context(closing(engine.open_session())))
        for _ in range(rounds):
            for session, own in zip(sessions, seconds, strict=True):
                session.prefill(prompt)
                for position in range(CONTEXT, CONTEXT + TOKENS):
                    started = time.perf_counter()
                    session.decode(1 + position, position)
                    own.append(time.perf_counter() - started)
    return [1 / statistics.median(own) for own in seconds]


def measure(shape: str, folder: Path, recipe: str, rounds: int) -> str:
    """Measure a shape.

    Args:
        shape: A key of `SHAPES`.
        folder: Where its files are, until it is measured.
        recipe: A recipe of `o2o.quantization.recipes`.
        rounds: Rounds of decoding.

    Returns:
        A row of the table.
    """
    from export.hub import resolve

    place = folder / shape
    checkpoint, package, plain = place / "checkpoint", place / "package", place / "unfused"
    try:
        make(checkpoint, shape)
        words = [sys.executable, "-m", "o2o", "convert", checkpoint, "-o", package, "--max-length", LENGTH]
        seconds, memory = measured([*words, "--quantize", recipe], place / "convert.log")
        size = (package / "model.circle").stat().st_size
        config = json.loads((package / "config.json").read_text())
        layers = config["num_hidden_layers"]
        unfused(resolve(checkpoint), plain, recipe)
        fast, slow = decoding([package, plain], rounds)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return (
        f"| {shape} ({layers} layers) | {seconds:.0f} s | {memory.private / 1e6:.0f} MB "
        f"({memory.total / 1e6:.0f}) | {size / 1e9:.2f} GB | {fast:.1f} | {slow:.1f} | {fast / slow:.2f} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--folder", type=Path, default=Path("families"), help="for all files (%(default)s)")
    parser.add_argument("--recipe", default="dynamic_int8", help="quantization (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of decoding (%(default)s)")
    return run("families.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    print("| shape | conversion | memory (with mapped files) | file | fused, tokens/s | unfused | ratio |")
    print("|---|---|---|---|---|---|---|")
    for shape in args.shapes:
        print(measure(shape, args.folder.absolute(), args.recipe, args.rounds), flush=True)


if __name__ == "__main__":
    sys.exit(main())
