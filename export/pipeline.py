"""Build a package from a checkpoint, with the filters: `python -m export.pipeline`.

    python -m export.pipeline --model DIR_OR_HUB_ID --package my-model --max-length 256
    python -m export.pipeline --model DIR_OR_HUB_ID --package my-model --format tflite --quantize dynamic_int8

Every command is shown before it runs. The package changes when all of them have succeeded.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("export.pipeline")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from o2o.cli import command
from o2o.cli.arguments import Parser, number_list


def parser(
    program: str, description: str | None, model: Path | None = None, package: Path | None = None
) -> argparse.ArgumentParser:
    """Make the command line's parser.

    Args:
        program: The command's name.
        description: The text that --help begins with.
        model: The default checkpoint; None if one must be given.
        package: The default folder; None if one must be given.

    Returns:
        The parser.
    """
    from export.loading_flags import add_adapter_flag, add_loading_flags
    from export.options import CacheForm, WeightsType
    from o2o.quantization.recipes import RECIPES

    parser = Parser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="DIR_OR_HUB_ID",
        default=model,
        required=model is None,
        help="the checkpoint's folder, a GGUF file, or an id on the Hugging Face hub"
        + " (default: the demo model)" * (model is not None),
    )
    add(
        "--package",
        metavar="DIR",
        default=package,
        required=package is None,
        help="folder to fill" + f" ({package})" * (package is not None),
    )
    add("--max-length", metavar="S", type=int, default=32, help="tokens of context (%(default)s)")
    add(
        "--prefill-lengths",
        metavar="A,B",
        type=number_list,
        help="tokens that one prefill reads, one graph for each length (64,128,256, if they fit; else S)",
    )
    add(
        "--cache",
        choices=get_args(CacheForm),
        help="static: decode writes its row into the caches; concat: it appends the row, and fusing makes a "
        "write of it (default: static" + ("; concat for the demo model" * (model is not None)) + ")",
    )
    add("--dtype", choices=get_args(WeightsType), default="float32", help="of stored matrices (%(default)s)")
    add("--format", choices=("circle", "tflite"), default="circle", help="of the model (%(default)s)")
    add(
        "--quantize",
        metavar="RECIPE",
        default="none",
        help=f"with --format tflite: {', '.join(RECIPES)} (%(default)s)",
    )
    add(
        "--if-changed",
        action="store_true",
        help="do nothing if the package was built from the same model, options and toolchain",
    )
    add_adapter_flag(parser)
    add_loading_flags(parser)
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def build(args: argparse.Namespace, program: str, demo: Path | None = None) -> None:
    """Build the package that the command line describes.

    Args:
        args: The parsed command line.
        program: The command's name, for its log.
        demo: The checkpoint that is built by the guide's commands, with a concatenated cache; None for none.

    Raises:
        UsageError: Options exclude each other.
    """
    from export.hub import resolve
    from export.options import CacheForm
    from export.package_builder import PackageBuilder
    from o2o.errors import UsageError

    if not args.package:
        raise UsageError("--package: the folder's name is empty")
    if args.format == "circle" and args.quantize != "none":
        raise UsageError("--quantize needs --format tflite")
    builder = PackageBuilder(
        resolve(args.model, adapter=args.adapter).absolute(),
        Path(args.package),
        args.max_length,
        args.prefill_lengths,
        lambda line: print(f"{program}: {line}", file=sys.stderr),
        args.if_changed,
    )
    cache: CacheForm | None = args.cache or (
        "concat" if args.format == "circle" and args.model == demo else None
    )
    builder.build(builder.plan(args.format, args.quantize, cache, args.dtype))


def main(
    argv: Sequence[str] | None = None,
    program: str = "export.pipeline",
    description: str | None = __doc__,
    model: Path | None = None,
    package: Path | None = None,
) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.
        program: See `parser`.
        description: See `parser`.
        model: See `parser`.
        package: See `parser`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> None:
        build(parser(program, description, model, package).parse_args(arguments), program, model)

    return command.run(program, body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
