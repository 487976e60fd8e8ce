#!/usr/bin/env python3
"""Convert a checkpoint to one TFLite file with the signatures of AI Edge's generative models.

    python convert_to_tflite.py --checkpoint_path=DIR --prefill_seq_lens=64,128,256 --kv_cache_max_len=1024 \\
        --quantize=true                                          # /tmp/tinyllama_q8_ekv1024.tflite
    python convert_to_tflite.py --checkpoint_path=DIR --use_flash_attention=true --quantize=false

The signature prefill takes tokens [1, T], input_pos [T] and the caches kv_cache_k_i, kv_cache_v_i, which are
[1, S, K, H]. It returns the caches. Several prefills are called prefill_64, prefill_128, ... The signature
decode takes the same with T = 1. It returns the caches and logits [1, 1, V].

Every command is shown before it runs. The file appears when all of them have succeeded.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("convert_to_tflite.py")

from o2o.cli import command
from o2o.cli.arguments import Parser, number_list
from tinyllama.absl_flags import FALSE, TRUE, add_boolean
from tinyllama.checkpoint_flag import add_checkpoint_path, checkpoint_at

if TYPE_CHECKING:
    from export.tflite_commands import Conversion

PROGRAM = "convert_to_tflite.py"
CAPACITY, LENGTHS = 1280, [64]  # the defaults
RECIPE = "dynamic_int8"


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    from export.loading_flags import add_loading_flags
    from o2o.quantization.recipes import RECIPES

    parser = Parser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_checkpoint_path(parser)
    add(
        "--prefill_seq_lens",
        metavar="A,B",
        type=number_list,
        action="extend",
        help="tokens that one prefill reads, one signature for each length; may be given several times "
        f"({','.join(map(str, LENGTHS))})",
    )
    add(
        "--kv_cache_max_len",
        metavar="S",
        type=int,
        help=f"rows of the KV caches ({CAPACITY}, or the model's number of positions if that is less)",
    )
    add(
        "--kv_cache_buckets",
        metavar="A,B",
        type=number_list,
        default=(),
        help="capacities of further decode signatures, decode_A, decode_B, for runtimes that choose the "
        "smallest one that holds the text (none)",
    )
    add(
        "--quantize",
        metavar="RECIPE",
        nargs="?",
        const=RECIPE,
        default=RECIPE,
        help=f"true: {RECIPE}; false: none; or one of {', '.join(RECIPES)} (true)",
    )
    add("--noquantize", dest="quantize", action="store_const", const="none", help=argparse.SUPPRESS)
    add("--report", metavar="FILE", help="write the quantization error of each tensor to this file, as JSON")
    add_boolean(parser, "use_flash_attention", False, "compute attention in blocks, to save memory")
    add("--flash_q_block", metavar="N", type=int, help="queries of a block (32 to 256, by prefill length)")
    add("--flash_kv_block", metavar="N", type=int, help="keys of a block (512)")
    add_boolean(parser, "enable_hlfb", False, "wrap attention and norms in composites, for accelerators")
    add_boolean(parser, "output_logits_on_prefill", False, "let prefills return logits [1, T, V]")
    add("--output_path", metavar="PATH", default="/tmp/", help="folder, or FILE.tflite (%(default)s)")
    add(
        "--output_name_prefix",
        metavar="NAME",
        default="tinyllama",
        help="NAME of NAME_q8_ekv1280.tflite (%(default)s)",
    )
    add_loading_flags(parser)
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def convert(args: argparse.Namespace) -> None:
    """Run the conversion that the command line describes. The file appears when all commands have succeeded.

    Args:
        args: The parsed command line.

    Raises:
        ModelError: A command failed; it has printed the reason itself.
    """
    from export import shell
    from export.processes import signals_interrupt
    from export.resources import check_disk, estimate_needs, format_bytes, quantized_bytes
    from export.staging import staging_folder
    from o2o.errors import ModelError

    started = time.monotonic()
    checkpoint = checkpoint_at(args.checkpoint_path, args.adapter)
    conversion = conversion_of(args, checkpoint.directory)
    target = target_of(args, conversion)
    parameters = estimate_needs(checkpoint.tensors, 0, 1, "float32", embed=True).parameters
    size = quantized_bytes(parameters, conversion.recipe)
    check_disk(target.parent, size, "the model")
    log(f"{target} needs about {format_bytes(size)}")
    with signals_interrupt(), staging_folder(target.parent) as folder:
        try:
            shell.run(conversion.commands(), folder)
        except shell.StepFailed as error:
            left = f"{target} is unchanged" if target.exists() else "nothing was written"
            raise ModelError(f"{error}, {left}") from None
        os.replace(folder / "model.tflite", target)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    log(
        f"wrote {target}, {format_bytes(target.stat().st_size)} in {seconds:.1f} s; the largest process took "
        f"{format_bytes(peak)} of memory"
    )


def conversion_of(args: argparse.Namespace, directory: Path) -> Conversion:
    """Turn the command line into a conversion.

    Args:
        args: The parsed command line.
        directory: The checkpoint's folder.

    Returns:
        The conversion.

    Raises:
        UsageError: Flags exclude each other, or the model excludes one.
    """
    from export.config import CheckpointConfig
    from export.options import check_length
    from export.tflite_commands import Conversion
    from o2o.errors import UsageError

    lengths = sorted(set(args.prefill_seq_lens or LENGTHS))
    config = CheckpointConfig.read(directory)
    capacity = args.kv_cache_max_len
    if capacity is None:
        capacity = min(CAPACITY, config.positions or CAPACITY, config.sliding_window or CAPACITY)
    if capacity < lengths[-1]:
        raise UsageError(
            f"--kv_cache_max_len {capacity} is below the prefill length {lengths[-1]}: use {lengths[-1]} "
            f"or more"
        )
    check_length(config, capacity, "--kv_cache_max_len")
    blocks = [size for size in (args.flash_q_block, args.flash_kv_block) if size is not None]
    if blocks and not args.use_flash_attention:
        raise UsageError("--flash_q_block and --flash_kv_block need --use_flash_attention")
    if blocks and min(blocks) < 1:
        raise UsageError("--flash_q_block and --flash_kv_block must be 1 or more")
    recipe = args.quantize.lower()
    recipe = RECIPE if recipe in TRUE else "none" if recipe in FALSE else args.quantize
    if args.report and recipe == "none":
        raise UsageError("--report describes quantization: it needs --quantize")
    report = Path(args.report).expanduser().absolute() if args.report else None
    if report is not None:
        _check_folder("--report", report.parent)
    return Conversion(
        directory,
        capacity,
        lengths,
        recipe,
        args.use_flash_attention,
        args.flash_q_block,
        args.flash_kv_block,
        args.enable_hlfb,
        args.output_logits_on_prefill,
        report,
        args.kv_cache_buckets,
        "--kv_cache_max_len",
    )


def target_of(args: argparse.Namespace, conversion: Conversion) -> Path:
    """Return the file to write.

    Args:
        args: The parsed command line.
        conversion: The conversion that it describes.

    Returns:
        `--output_path` itself, or a file in that folder.

    Raises:
        UsageError: The file's folder does not exist.
    """
    target = Path(args.output_path).expanduser().absolute()
    if target.suffix != ".tflite":
        target /= f"{args.output_name_prefix}_{conversion.tag}.tflite"
    _check_folder("--output_path", target.parent)
    return target


def _check_folder(flag: str, folder: Path) -> None:
    """Raise UsageError for a folder that does not exist, or that is something else."""
    from o2o.errors import UsageError

    if not folder.exists():
        raise UsageError(f"{flag}: no such folder: {folder}")
    if not folder.is_dir():
        raise UsageError(f"{flag}: {folder} is not a folder")


def log(line: str) -> None:
    """Print a line on stderr.

    Args:
        line: The text.
    """
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run(PROGRAM, lambda: convert(parser().parse_args(arguments)), debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
