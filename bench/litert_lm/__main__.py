"""Compare LiteRT-LM's texts with those of this project: `python -m bench.litert_lm [MODEL ...]`.

Each MODEL is a checkpoint's folder, the demo model by default. It is converted with `o2o convert --format
litertlm`, in float32, int8 and int4. LiteRT-LM is installed into a virtual environment of its own. Both read
the same prompts and continue them greedily. LiteRT-LM's server answers the first one too. The texts must be
the same, word for word.

Exit code 0: all texts are the same; 1: one differs, or something failed; 2: wrong usage.
"""

from __future__ import annotations

import sys

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("bench.litert_lm")

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.peers.environments import python_of, user_folder
from bench.peers.processes import ROOT, run_to_end
from bench.peers.variants import LITERT_LM
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.quantization.recipes import RECIPES, find_recipe
from runtime_py.package import Package

DEMO = ROOT / "tinyllama" / "demo" / "checkpoint"
DEFAULT_RECIPES = ("none", "dynamic_int8", "dynamic_int4_block32")
PROMPTS = (
    "Lily picked up a flower.",
    "Once upon a time",
    "The old man walked to the river",
    "A",
    "It was a dark night, and the wind blew. " * 6,
)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(prog="python -m bench.litert_lm", description=__doc__)
    add = parser.add_argument
    add(
        "models",
        metavar="MODEL",
        nargs="*",
        type=Path,
        help="a checkpoint's folder (default: the demo model)",
    )
    add(
        "--recipes",
        metavar="RECIPE",
        nargs="+",
        default=DEFAULT_RECIPES,
        help=f"of {', '.join(RECIPES)} (default: {' '.join(DEFAULT_RECIPES)})",
    )
    add("--max-length", metavar="N", type=positive_int, default=256, help="tokens of context (%(default)s)")
    add("--tokens", metavar="N", type=positive_int, default=150, help="tokens of a text (%(default)s)")
    add("--prompts", metavar="TEXT", nargs="+", default=PROMPTS, help="(default: 5 prompts)")
    add(
        "--environments", type=Path, metavar="DIR", help="folder for LiteRT-LM (default: in the user's cache)"
    )
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def compare(
    file: Path, python: str, prompts: Sequence[str], tokens: int, log: Path
) -> Iterator[tuple[str, bool]]:
    """Let both runtimes continue the prompts.

    Args:
        file: A `.litertlm` file.
        python: The interpreter of LiteRT-LM's environment.
        prompts: The prompts.
        tokens: New tokens of a text at most.
        log: The file for LiteRT-LM's messages.

    Yields:
        The subject, and whether both are the same.
    """
    request = {"model": str(file), "prompts": list(prompts), "tokens": tokens}
    answer = file.with_name("texts.json")
    run_to_end([python, "-m", "bench.litert_lm.texts", json.dumps(request), str(answer)], log)
    theirs = json.loads(answer.read_text())
    with Package.load(file) as package:
        ours = [package.generate(prompt, max_new_tokens=tokens) for prompt in prompts]
    for prompt, text, other in zip(prompts, ours, theirs["texts"], strict=True):
        yield f"{prompt[:30]!r}, {len(text.split())} words", text == other
    yield "served", theirs["served"] == ours[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        args = parser().parse_args(arguments)
        recipes = [find_recipe(recipe).name for recipe in args.recipes]
        folder = (args.environments or user_folder() / "environments").absolute()
        differences = 0
        with tempfile.TemporaryDirectory(prefix="litert-lm-") as work:
            log = Path(work) / "log"
            python = python_of(LITERT_LM, folder, log)
            for model in args.models or [DEMO]:
                for recipe in recipes:
                    package = Path(work) / f"{model.absolute().name}-{recipe}"
                    flags = ["--max-length", str(args.max_length), "--quantize", recipe]
                    convert = [sys.executable, "-m", "o2o", "convert", str(model), "-o", str(package), *flags]
                    run_to_end([*convert, "--format", "litertlm"], log)
                    file = package / "model.litertlm"
                    for subject, same in compare(file, python, args.prompts, args.tokens, log):
                        verdict = "the same" if same else "DIFFERENT"
                        print(f"{model.absolute().name} {recipe}: {subject}: {verdict}", flush=True)
                        differences += not same
        return int(differences > 0)

    return run("bench.litert_lm", body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
