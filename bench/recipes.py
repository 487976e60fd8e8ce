"""Measure what each quantization recipe costs and saves, as a Markdown table.

    python bench/recipes.py [--checkpoint DIR] [--text FILE | --sampled N] [--recipes none dynamic_int8 ...]
    python bench/recipes.py --checkpoint stories260K.bin --sampled 32
    python bench/recipes.py --shape tinyllama-1.1b --folder DIR

    size             of the file, also relative to float32, which is always measured first
    weights          rms quantization error, relative to the weights (runtime_py.quality)
    perplexity       on the text, and its increase over float32 (runtime_py.perplexity)
    first 10 tokens  tokens before the first one that differs from transformers in float32: the mean over 10
                     prompts, the first 8 ids of documents, or random ids
    conversion       convert_to_tflite.py, once: wall seconds, CPU seconds, and the
                     peak memory of its largest process
    decode           tokens/s relative to float32: the median of rounds in turn (and quartiles)

The default is the demo model with 64 held-out stories. --sampled N draws N documents from the checkpoint
itself, if there is no text. The perplexity increase on these measures how far predictions diverge. A llama2.c
file is converted first. --shape makes a random checkpoint unless the folder has one; there is nothing to
predict. Each step is a new process. Files are deleted afterwards. Peak disk use is four times the float32
model.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("recipes.py")

import argparse
import contextlib
import multiprocessing
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from bench.scale import ROOT, Measured, measured
from export.config import CheckpointConfig
from o2o.cli.arguments import Parser
from o2o.cli.command import run
from runtime_py.evaluation.log_likelihood import Score

T = TypeVar("T")
Ids = list[list[int]]

DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
BASE = "none"
NAMES = {
    "none": "float32",
    "float16": "float16",
    "dynamic_int8": "int8",
    "weight_only_int8": "int8, weights only",
    "dynamic_int4_block32": "int4 by 32",
    "dynamic_int4_block128": "int4 by 128",
    "dynamic_int4_block32_head": "int4 by 32, the head too",
}
FIRST, PROMPTS, PROMPT = 10, 10, 8
STORIES, SAMPLED_TOKENS = 64, 256
ROUNDS, STEPS = 9, 32


def _fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def transformers_model(checkpoint: Path) -> Any:
    """Load a checkpoint with transformers.

    Args:
        checkpoint: Its folder.

    Returns:
        The model in float32.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()


def sampled(checkpoint: Path, count: int, length: int) -> Ids:
    """Sample documents from a model, each from BOS on.

    Args:
        checkpoint: The model's checkpoint.
        count: The number of documents.
        length: Ids of each document.

    Returns:
        The ids of each document.
    """
    import torch

    model = transformers_model(checkpoint)
    begin = torch.full((count, 1), model.config.bos_token_id)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None}
    return list(model.generate(begin, max_new_tokens=length - 1, pad_token_id=0, **options).tolist())


def by_transformers(checkpoint: Path, prompts: Ids) -> Ids:
    """Continue prompts greedily with transformers.

    Args:
        checkpoint: The model's checkpoint.
        prompts: The ids of each prompt.

    Returns:
        The next `FIRST` tokens of each.
    """
    import torch

    model = transformers_model(checkpoint)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": FIRST}
    return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]


def _encoded(checkpoint: Path, text: str) -> Ids:
    """The ids of each document of a text."""
    from runtime_py.evaluation.log_likelihood import documents
    from runtime_py.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    return [tokenizer.encode(document) for document in documents(text)]


def random_prompts(checkpoint: Path) -> Ids:
    """Draw prompts.

    Args:
        checkpoint: The checkpoint, for its vocabulary size.

    Returns:
        The ids of each prompt.
    """
    words = CheckpointConfig.read(checkpoint).vocab_size
    return np.random.default_rng(0).integers(3, words, (PROMPTS, PROMPT)).tolist()


@dataclass(frozen=True)
class Predictions:
    """The predictions of a file.

    Attributes:
        score: Its score on the documents; None without documents.
        tokens: The greedy tokens after each prompt.
    """

    score: Score | None
    tokens: Ids


def predict(file: Path, checkpoint: Path, documents: Ids, prompts: Ids) -> Predictions:
    """Run a file on documents and prompts.

    Args:
        file: A model's file.
        checkpoint: The folder of its tokenizer.
        documents: The ids of each document.
        prompts: The ids of each prompt.

    Returns:
        Its predictions.
    """
    from runtime_py.evaluation.log_likelihood import negative_log_likelihoods, scores
    from runtime_py.package import Package

    with (
        contextlib.closing(Package.load(file, checkpoint).engine()) as engine,
        contextlib.closing(engine.open_session()) as session,
    ):
        score = (
            scores([[negative_log_likelihoods(session, ids) for ids in documents]])[0] if documents else None
        )
        tokens = []
        for prompt in prompts:
            chosen = [int(session.prefill(prompt).argmax())]
            for position in range(len(prompt), len(prompt) + FIRST - 1):
                chosen.append(int(session.decode(chosen[-1], position).argmax()))
            tokens.append(chosen)
        return Predictions(score, tokens)


def weight_error(before: Path, after: Path) -> float:
    """Compare the weights of two files.

    Args:
        before: The float32 file.
        after: The quantized file.

    Returns:
        The relative rms error of all weights.
    """
    from o2o import formats
    from o2o.quantization.compare import compare
    from runtime_py.quality import tensor_report

    return float(tensor_report(compare(formats.load(before), formats.load(after)))["error"]["rms"])


def _speeds(before: Path, after: Path, checkpoint: Path) -> list[float]:
    """Decode speed of `after` relative to `before` in each round, ascending."""
    from runtime_py.package import Package

    def seconds(session: Any) -> float:
        session.prefill([1])
        started = time.perf_counter()
        for position in range(1, STEPS + 1):
            session.decode(1, position)
        return time.perf_counter() - started

    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(contextlib.closing(Package.load(file, checkpoint).engine()))
            for file in (before, after)
        ]
        sessions = [stack.enter_context(contextlib.closing(engine.open_session())) for engine in engines]
        [seconds(session) for session in sessions]
        rounds = [[seconds(session) for session in sessions] for _ in range(ROUNDS)]
    return sorted(one / other for one, other in rounds)


def agreement(expected: Ids, actual: Ids) -> float:
    """Compare greedy tokens.

    Args:
        expected: The expected tokens of each prompt.
        actual: The tokens to compare.

    Returns:
        The mean number of equal tokens before the first different one.
    """

    def same(one: list[int], other: list[int]) -> int:
        return next(
            (n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one)
        )

    return statistics.mean(map(same, expected, actual))


HEAD = (
    "| | size | of float32 | weights | perplexity | more | first 10 tokens | conversion | memory | decode |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def row(
    name: str,
    size: int,
    base_size: int,
    error: float | None,
    predictions: Predictions,
    base: Predictions,
    same: float,
    took: Measured,
    ratios: Sequence[float],
) -> str:
    """Format a line of the table.

    Args:
        name: The name of the recipe.
        size: Bytes of the file.
        base_size: Bytes of the float32 file.
        error: See `weight_error`; None for float32.
        predictions: Of the file.
        base: Predictions of the float32 file.
        same: See `agreement`.
        took: The conversion's time and memory.
        ratios: Decode speed relative to float32, by round; empty for float32.

    Returns:
        The line in Markdown.
    """
    share = f"{size / base_size:.1%}" if ratios else ""
    perplexity = f"{predictions.score.perplexity:.4f}" if predictions.score else "-"
    more = (
        f"{predictions.score.change(base.score):+.2%}" if predictions.score and base.score and ratios else ""
    )
    decode = ""
    if ratios:
        low, median, high = statistics.quantiles(ratios, n=4)
        decode = f"{median:.2f}x ({low:.2f} to {high:.2f})"
    megabytes = f"{size / 1e6:,.2f} MB" if size < 1e8 else f"{size / 1e9:.2f} GB"
    cells = [name, megabytes, share, "" if error is None else f"{error:.2g}", perplexity, more]
    cells += [f"{same:.1f}/{FIRST}", f"{took.seconds:.0f} s ({took.processor:.0f})"]
    cells += [f"{took.megabytes:.0f} MB", decode]
    return f"| {' | '.join(cells)} |"


def _checkpoint_of(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the checkpoint, made or converted if requested."""
    if args.shape:
        checkpoint = ((args.folder or folder) / args.shape).absolute()
        if not (checkpoint / "config.json").exists():
            make = [sys.executable, ROOT / "bench" / "make_checkpoint.py", checkpoint, "--shape", args.shape]
            subprocess.run(make, check=True)
        return checkpoint
    if args.checkpoint.suffix == ".bin":
        from bench.llama2c import convert

        return convert(args.checkpoint, folder / args.checkpoint.stem)
    return Path(args.checkpoint).resolve()


def texts_of(args: argparse.Namespace, checkpoint: Path, capacity: int) -> Ids:
    """Read or sample the documents.

    Args:
        args: The command's arguments.
        checkpoint: The checkpoint's folder.
        capacity: The longest document that can be sampled.

    Returns:
        The ids of each document; none for a random checkpoint.
    """
    if args.text:
        return _encoded(checkpoint, args.text.read_text(encoding="utf-8"))
    if args.sampled:
        return _fresh(sampled, checkpoint, args.sampled, min(capacity, SAMPLED_TOKENS))
    if checkpoint == DEMO:
        from tinyllama.demo.held_out import held_out

        return _encoded(checkpoint, held_out(STORIES))
    return []


def _table(args: argparse.Namespace, folder: Path) -> None:
    """Convert and measure each recipe, and print its line."""
    checkpoint = _checkpoint_of(args, folder)
    positions = CheckpointConfig.read(checkpoint).positions
    capacity = min(args.kv_cache_max_len, positions or args.kv_cache_max_len)
    documents = texts_of(args, checkpoint, capacity)
    prompts = [ids[:PROMPT] for ids in documents[:PROMPTS]] or random_prompts(checkpoint)
    expected = _fresh(by_transformers, checkpoint, prompts)
    convert = [sys.executable, str(ROOT / "tinyllama" / "convert_to_tflite.py")]
    convert.append(f"--checkpoint_path={checkpoint}")
    convert += [f"--kv_cache_max_len={capacity}", f"--prefill_seq_lens={args.prefill_seq_lens}"]
    print(HEAD, RULE, sep="\n", flush=True)
    base, base_file = None, folder / f"{BASE}.tflite"
    for recipe in [BASE, *(recipe for recipe in args.recipes if recipe != BASE)]:
        file = folder / f"{recipe}.tflite"
        took = measured(shlex.join([*convert, f"--quantize={recipe}", f"--output_path={file}"]), folder)
        predictions = _fresh(predict, file, checkpoint, documents, prompts)
        base = base or predictions
        ratios = _fresh(_speeds, base_file, file, checkpoint) if recipe != BASE else []
        error = _fresh(weight_error, base_file, file) if recipe != BASE else None
        sizes = file.stat().st_size, base_file.stat().st_size
        same = agreement(expected, predictions.tokens)
        print(
            row(NAMES.get(recipe, recipe), *sizes, error, predictions, base, same, took, ratios), flush=True
        )
        if recipe != BASE:
            file.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    from o2o.quantization.recipes import RECIPES

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", type=Path, default=DEMO, help="folder, or llama2.c's FILE.bin (default: the demo)"
    )
    source.add_argument("--shape", help="shape of a random checkpoint, see bench/make_checkpoint.py")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text", type=Path, metavar="FILE", help="held-out documents with blank lines between them"
    )
    text.add_argument("--sampled", type=int, metavar="N")
    add("--recipes", nargs="+", choices=tuple(RECIPES), default=tuple(NAMES), metavar="RECIPE")
    add(
        "--kv_cache_max_len",
        type=int,
        default=1024,
        metavar="S",
        help="at most the model's (default: 1024)",
    )
    add("--prefill_seq_lens", default="64,128,256", metavar="A,B")
    add("--folder", type=Path, help="folder for files and the checkpoint of --shape (default: temporary)")
    return run("recipes.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recipes-", dir=args.folder) as name:
        work = Path(name).absolute()
        os.environ["O2O_CACHE"] = str(work / "cache")
        _table(args, work)


if __name__ == "__main__":
    sys.exit(main())
