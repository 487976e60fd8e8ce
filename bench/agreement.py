"""Compare the greedy tokens and the logits of a package with Hugging Face transformers.

    python bench/agreement.py CHECKPOINT PACKAGE [--tokens 24]

Both continue three prompts by 24 tokens: transformers with the checkpoint in float32, this runtime with the
package, each in its own process. Prints the number of prompts with equal tokens, and the largest difference
of the logits.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("agreement.py")

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from o2o.cli.arguments import Parser
from o2o.cli.command import run

PROMPTS = [[1, 259, 727, 263, 931], [1, 15043, 590, 1024, 338, 274, 29889, 29871, 22172], list(range(1, 150))]


def _continued(prompt: list[int], tokens: int, start: Callable, step: Callable) -> tuple[list[int], list]:
    """Continue a prompt greedily. Return the new tokens, and the logits [V] before each."""
    logits = [start(prompt)]
    chosen = [int(logits[0].argmax())]
    for position in range(len(prompt), len(prompt) + tokens - 1):
        logits.append(step(chosen[-1], position))
        chosen.append(int(logits[-1].argmax()))
    return chosen, logits


def _by_hugging_face(checkpoint: str, tokens: int, threads: int) -> list[tuple[list[int], list]]:
    """`_continued` for each prompt, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    results = []
    with torch.no_grad():
        for prompt in PROMPTS:
            cache = None

            def feed(ids: list[int]) -> np.ndarray:
                nonlocal cache
                out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                return out.logits[0, -1].numpy()

            results.append(_continued(prompt, tokens, feed, lambda token, _: feed([token])))
    return results


def _by_package(package: str, tokens: int) -> list[tuple[list[int], list]]:
    """`_continued` for each prompt, by this runtime."""
    from runtime_py.package import Package

    engine = Package.load(package).engine()
    session = engine.open_session()
    results = [_continued(prompt, tokens, session.prefill, session.decode) for prompt in PROMPTS]
    session.close()
    engine.close()
    return results


def _elsewhere(*arguments: object) -> None:
    """Run this script in a new process."""
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("package")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--part", choices=("hugging face", "package"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return run("agreement.py", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if args.part:
        cores = len(os.sched_getaffinity(0))
        results = (
            _by_package(args.package, args.tokens)
            if args.part == "package"
            else _by_hugging_face(args.checkpoint, args.tokens, cores)
        )
        tokens, logits = (np.stack([np.stack(item[k]) for item in results]) for k in (0, 1))
        np.savez(args.out, tokens=tokens, logits=logits)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for part in ("hugging face", "package"):
            out = Path(folder, f"{part}.npz")
            options = ["--part", part, "--out", out, "--tokens", args.tokens]
            _elsewhere(args.checkpoint, args.package, *options)
            results[part] = np.load(out)
    expected, actual = results["hugging face"], results["package"]
    same = (expected["tokens"] == actual["tokens"]).all(axis=1)
    off = np.abs(expected["logits"] - actual["logits"]).max()
    print(f"greedy       the same {args.tokens} tokens after {same.sum()} of {len(PROMPTS)} prompts")
    print(f"logits       within {off:.1e}")
    return 0 if same.all() and off <= 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
