"""Export a checkpoint: `python -m export MODEL -o DIR`.

    python -m export TinyLlama/TinyLlama-1.1B-Chat-v1.0 -o tinyllama-1.1b --max-length 1024

Writes one prefill graph for each length, the decode graph, and the tokenizer's files. All files appear when
every graph has been exported. The filters combine them into a package; `make package MODEL=... PACKAGE=...`
runs the export and the filters.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("export")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from o2o.cli import command
from o2o.cli.arguments import Parser, number_list, positive_int
from o2o.errors import UsageError

if TYPE_CHECKING:
    from export.options import ExportOptions

PROGRAM = "python -m export"


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    from export.graph_specs import PREFILL_LENGTHS
    from export.loading_flags import add_adapter_flag, add_loading_flags
    from export.options import CacheForm, WeightsForm, WeightsType

    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="the checkpoint's folder, a GGUF file, or an id on the Hugging Face hub",
    )
    add("-o", "--output", metavar="DIR", required=True, help="folder for the graphs")
    add("--max-length", metavar="S", type=int, default=1024, help="tokens of context (%(default)s)")
    add(
        "--prefill-lengths",
        metavar="A,B",
        type=number_list,
        help="tokens that one prefill reads, one graph for each length "
        f"({','.join(map(str, PREFILL_LENGTHS))}, if they fit S)",
    )
    add(
        "--cache",
        choices=get_args(CacheForm),
        default="concat",
        help="concat: decode appends its row; static: it writes the row into the caches (%(default)s)",
    )
    add(
        "--weights",
        choices=get_args(WeightsForm),
        default="external",
        help="external: graphs refer to the checkpoint until bind.weights.py (%(default)s)",
    )
    add(
        "--dtype",
        choices=get_args(WeightsType),
        default="float32",
        help="dtype of stored matrices; all arithmetic is float32 (%(default)s)",
    )
    add(
        "--attn-implementation",
        metavar="NAME",
        default="eager",
        help="an implementation of transformers; or grouped, flash, flash:Q,KV (block sizes): attention as "
        "one operator, with --cache static. Models that have no choice keep their own (%(default)s)",
    )
    add_adapter_flag(parser)
    add_loading_flags(parser)
    add("--jobs", metavar="N", type=positive_int, help="graphs to export at a time (cores and memory)")
    add("--debug", action="store_true", help="show warnings and tracebacks")
    return parser


def export(args: argparse.Namespace) -> None:
    """Run the export that the command line describes.

    Args:
        args: The parsed command line.

    Raises:
        UsageError: The name of the output folder is empty.
    """
    from export.export_graphs import export_graphs
    from export.hub import resolve

    if not args.output:
        raise UsageError("--output: the folder's name is empty")
    directory = resolve(
        args.model, adapter=args.adapter, log=lambda line: command.report("export", f"note: {line}")
    )
    export_graphs(str(directory), Path(args.output), _options(args))


def is_cached(argv: Sequence[str]) -> bool:
    """Check whether an export finds all graphs in the cache, so that it does not import torch.

    Args:
        argv: The arguments. The model is a folder.

    Returns:
        Whether no graph must be traced.
    """
    from export.export_graphs import is_cached

    args = parser().parse_args(argv)
    directory = Path(args.model)
    return args.adapter is None and directory.is_dir() and is_cached(directory, _options(args))


def _options(args: argparse.Namespace) -> ExportOptions:
    from export.loading_flags import is_strict
    from export.options import ExportOptions

    return ExportOptions(
        args.max_length,
        args.prefill_lengths,
        args.cache,
        args.attn_implementation,
        args.weights,
        args.dtype,
        args.jobs,
        args.debug,
        is_strict(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run("export", lambda: export(parser().parse_args(arguments)), debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
