"""What each recipe of quantisation costs and saves, from checkpoint to TFLite file: a table in Markdown.

    python bench/recipes.py [--checkpoint DIR] [--text FILE | --sampled N] [--recipes none dynamic_int8 ...]
    python bench/recipes.py --checkpoint ../shared/data/stories260K/stories260K.bin --sampled 32
    python bench/recipes.py --shape tinyllama-1.1b --folder DIR

    size             of the file, and as a share of that with float32 weights, which is always made first
    weights          the root mean square of what they lost, as a share of theirs (runtime_py.quality)
    perplexity       on the text, and by how much more than float32 (runtime_py.perplexity)
    first 10 tokens  of those that transformers generates in float32, how many come before the first other
                     one: the mean over 10 prompts, the first 8 ids of documents, or random ids
    conversion       convert_to_tflite.py, once: seconds, with those of processors, which other work on the
                     machine makes no longer; and the most memory of one of its processes
    decode           tokens a second, by those of float32: the median of rounds in turn (their quarters)

Of the demo model, the default, the text is 64 held-out stories. --sampled: N documents that the checkpoint
itself writes by chance, where no text is at hand; by how much the perplexity grows on these says how far its
predictions are from what they were (their divergence). A file of llama2.c is converted first. A random
checkpoint, which --shape makes unless the folder has one, has nothing to predict. Each step is a process of
its own. Files are gone afterwards; while it runs, it takes up to four times the bytes of the float32 model.
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
import json
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


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Its result, computed in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def transformers_model(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()


def sampled(checkpoint: Path, count: int, length: int) -> Ids:
    """What the model says when each token is drawn with the probability that it gives it, from BOS on."""
    import torch

    model = transformers_model(checkpoint)
    begin = torch.full((count, 1), model.config.bos_token_id)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None}
    return list(model.generate(begin, max_new_tokens=length - 1, pad_token_id=0, **options).tolist())


def by_transformers(checkpoint: Path, prompts: Ids) -> Ids:
    """The likeliest FIRST tokens after each prompt."""
    import torch

    model = transformers_model(checkpoint)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": FIRST}
    return [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]


def encoded(checkpoint: Path, text: str) -> Ids:
    from runtime_py.evaluation.log_likelihood import documents
    from runtime_py.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    return [tokenizer.encode(document) for document in documents(text)]


def random_prompts(checkpoint: Path) -> Ids:
    words = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(0).integers(3, words, (PROMPTS, PROMPT)).tolist()


@dataclass(frozen=True)
class Said:
    """What a file says: its score on the documents, None for none; the likeliest tokens after each prompt."""

    score: Score | None
    tokens: Ids


def ask(file: Path, checkpoint: Path, documents: Ids, prompts: Ids) -> Said:
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
        return Said(score, tokens)


def lost(before: Path, after: Path) -> float:
    """The relative error of the weights, overall."""
    from o2o import formats
    from o2o.quantization.compare import compare
    from runtime_py.quality import tensor_report

    return float(tensor_report(compare(formats.load(before), formats.load(after)))["error"]["rms"])


def speeds(before: Path, after: Path, checkpoint: Path) -> list[float]:
    """Tokens a second of `after` by those of `before`, in each of some rounds, ascending."""
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


def agreement(expected: Ids, found: Ids) -> float:
    """How many tokens come before the first other one, the mean."""

    def same(one: list[int], other: list[int]) -> int:
        return next(
            (n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one)
        )

    return statistics.mean(map(same, expected, found))


HEAD = (
    "| | size | of float32 | weights | perplexity | more | first 10 tokens | conversion | memory | decode |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def row(
    name: str,
    size: int,
    base_size: int,
    error: float | None,
    said: Said,
    base: Said,
    same: float,
    took: Measured,
    ratios: Sequence[float],
) -> str:
    """A line of the table."""
    share = f"{size / base_size:.1%}" if ratios else ""
    perplexity = f"{said.score.perplexity:.4f}" if said.score else "-"
    more = f"{said.score.change(base.score):+.2%}" if said.score and base.score and ratios else ""
    decode = ""
    if ratios:
        low, median, high = statistics.quantiles(ratios, n=4)
        decode = f"{median:.2f}x ({low:.2f} to {high:.2f})"
    megabytes = f"{size / 1e6:,.2f} MB" if size < 1e8 else f"{size / 1e9:.2f} GB"
    cells = [name, megabytes, share, "" if error is None else f"{error:.2g}", perplexity, more]
    cells += [f"{same:.1f}/{FIRST}", f"{took.seconds:.0f} s ({took.processor:.0f})"]
    cells += [f"{took.megabytes:.0f} MB", decode]
    return f"| {' | '.join(cells)} |"


def checkpoint_of(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the checkpoint, made where that is asked for."""
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
    if args.text:
        return encoded(checkpoint, args.text.read_text(encoding="utf-8"))
    if args.sampled:
        return fresh(sampled, checkpoint, args.sampled, min(capacity, SAMPLED_TOKENS))
    if checkpoint == DEMO:
        from tinyllama.demo.held_out import held_out

        return encoded(checkpoint, held_out(STORIES))
    return []


def table(args: argparse.Namespace, folder: Path) -> None:
    checkpoint = checkpoint_of(args, folder)
    positions = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    capacity = min(args.kv_cache_max_len, positions)
    documents = texts_of(args, checkpoint, capacity)
    prompts = [ids[:PROMPT] for ids in documents[:PROMPTS]] or random_prompts(checkpoint)
    expected = fresh(by_transformers, checkpoint, prompts)
    convert = [sys.executable, str(ROOT / "tinyllama" / "convert_to_tflite.py")]
    convert.append(f"--checkpoint_path={checkpoint}")
    convert += [f"--kv_cache_max_len={capacity}", f"--prefill_seq_lens={args.prefill_seq_lens}"]
    print(HEAD, RULE, sep="\n", flush=True)
    base, base_file = None, folder / f"{BASE}.tflite"
    for recipe in [BASE, *(recipe for recipe in args.recipes if recipe != BASE)]:
        file = folder / f"{recipe}.tflite"
        took = measured(shlex.join([*convert, f"--quantize={recipe}", f"--output_path={file}"]), folder)
        said = fresh(ask, file, checkpoint, documents, prompts)
        base = base or said
        ratios = fresh(speeds, base_file, file, checkpoint) if recipe != BASE else []
        error = fresh(lost, base_file, file) if recipe != BASE else None
        sizes = file.stat().st_size, base_file.stat().st_size
        same = agreement(expected, said.tokens)
        print(row(NAMES.get(recipe, recipe), *sizes, error, said, base, same, took, ratios), flush=True)
        if recipe != BASE:
            file.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code.
    """
    from o2o.quantization.recipes import RECIPES

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", type=Path, default=DEMO, help="folder, or llama2.c's FILE.bin (the demo)"
    )
    source.add_argument("--shape", help="of a random one, see bench/make_checkpoint.py")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text", type=Path, metavar="FILE", help="held-out documents, blank lines between them"
    )
    text.add_argument("--sampled", type=int, metavar="N")
    add("--recipes", nargs="+", choices=tuple(RECIPES), default=tuple(NAMES), metavar="RECIPE")
    add("--kv_cache_max_len", type=int, default=1024, metavar="S", help="or what the model has (1024)")
    add("--prefill_seq_lens", default="64,128,256", metavar="A,B")
    add("--folder", type=Path, help="for files, and the checkpoint of --shape (a temporary one)")
    return run("recipes.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> None:
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recipes-", dir=args.folder) as name:
        work = Path(name).absolute()
        os.environ["O2O_CACHE"] = str(work / "cache")
        table(args, work)


if __name__ == "__main__":
    sys.exit(main())
