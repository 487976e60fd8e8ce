#!/usr/bin/env python3
"""Export a Llama-style checkpoint of Hugging Face as a prefill graph or a decode graph.

    python tinyllama/tinyllama.py --mode prefill      # prefill.circle
    python tinyllama/tinyllama.py --mode decode       # decode_.circle

Both also copy the tokenizer's files into the folder tinyllama, the package that will hold model.circle.
The default model is the demo model, in the folder of this script. Weights are streamed from the checkpoint
into the file; they are never in memory all at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is this very file.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("tinyllama.py")
elif __name__ == "tinyllama":
    # A program in this folder that imports `tinyllama` gets this file instead of the package: act as the
    # package.
    __path__ = [str(Path(__file__).resolve().parent)]

from o2o.cli import command
from o2o.cli.arguments import Parser
from tinyllama.checkpoint_flag import DEMO

DEFAULT_OUTPUT = {"prefill": "prefill.circle", "decode": "decode_.circle"}


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="tinyllama.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=DEFAULT_OUTPUT, required=True, help="the graph to export")
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", default=DEMO, help="default: the demo model")
    parser.add_argument(
        "--max-length",
        metavar="T",
        type=int,
        default=32,
        help="tokens of context: what prefill reads, and what decode's caches hold after reshape.io.py; "
        "--cache concat exports 2 rows less (%(default)s)",
    )
    parser.add_argument(
        "--cache",
        choices=("concat", "static"),
        default="concat",
        help="concat: append the new key and value to the past, for fuse.attention.py; static: write them "
        "into the caches at cache_position (%(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=("embed", "external"),
        default="embed",
        help="external: the graph refers to the checkpoint until bind.weights.py (%(default)s)",
    )
    parser.add_argument("--attn-implementation", metavar="NAME", default="eager", help="(%(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: prefill.circle or decode_.circle")
    parser.add_argument(
        "--package",
        metavar="DIR",
        help="folder for the checkpoint's tokenizer and configuration (default: tinyllama, or none with -o)",
    )
    parser.add_argument("--debug", action="store_true", help="show warnings and tracebacks")
    return parser


def export(args: argparse.Namespace) -> None:
    """Export the graph that the command line describes.

    Args:
        args: The parsed command line.
    """
    from export.config import CheckpointConfig
    from export.graph_specs import graph_specs
    from export.hub import resolve
    from export.options import check_attention, check_length
    from export.package_files import copy_package_files
    from o2o import formats
    from o2o.cli.progress import progress
    from o2o.cli.silence_stderr import suppressed_warnings
    from o2o.weights.checkpoint import open_checkpoint

    started = time.monotonic()
    prefill, decode = graph_specs(args.max_length, (), args.cache)
    directory = resolve(args.model)
    checkpoint = open_checkpoint(directory)  # report defects before torch, transformers and TICO are loaded
    config = CheckpointConfig.read(directory)
    check_attention(args.attn_implementation, args.cache if args.mode == "decode" else None)
    check_length(config, args.max_length)
    spec = prefill if args.mode == "prefill" else decode
    output = args.output or DEFAULT_OUTPUT[args.mode]
    with progress(f"export {args.mode}", 1, "graph") as advance:
        with contextlib.nullcontext() if args.debug else suppressed_warnings():
            model = spec.trace(directory, args.attn_implementation).bind(checkpoint, args.weights, "float32")
        advance(1)
    formats.save(model, output)
    if package := args.package or (None if args.output else "tinyllama"):
        copy_package_files(package, directory)
    size, seconds = os.path.getsize(output), time.monotonic() - started
    print(f"tinyllama.py: wrote {output}, {size / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run(
        "tinyllama.py", lambda: export(parser().parse_args(arguments)), debug="--debug" in arguments
    )


if __name__ == "__main__":
    sys.exit(main())
