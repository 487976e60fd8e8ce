#!/usr/bin/env python3
"""Convert a checkpoint to one TFLite file with the signatures of AI Edge's generative models.

    python convert_to_tflite.py --checkpoint_path=DIR --prefill_seq_lens=64,128,256 --kv_cache_max_len=1024 \\
        --quantize=true                                          # /tmp/tinyllama_q8_ekv1024.tflite
    python convert_to_tflite.py --checkpoint_path=DIR --use_flash_attention=true --quantize=false

prefill (several: prefill_64, prefill_128, ...): tokens [1, T], input_pos [T], kv_cache_k_i, kv_cache_v_i
[1, S, K, H] -> the caches; decode: the same with T = 1 -> the caches, logits [1, 1, V]. The commands that do
it are shown as they run. The file appears when all of them succeeded.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("convert_to_tflite.py")

from export import shell
from export.resources import check_disk, gigabytes, needs
from export.tflite_pipeline import Conversion, positions_of
from o2o import errors
from o2o.cli import command
from o2o.cli.arguments import Parser, number_list
from o2o.quantization.recipes import RECIPES
from tinyllama.absl_flags import FALSE, TRUE, add_boolean
from tinyllama.checkpoint_flag import add_checkpoint_path, checkpoint_at

PROGRAM = "convert_to_tflite.py"
CAPACITY, LENGTHS = 1280, [64]  # where nothing else is asked for
RECIPE = "dynamic_int8"


def parser() -> argparse.ArgumentParser:
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
        help=f"tokens that prefills read; may be given several times ({','.join(map(str, LENGTHS))})",
    )
    add(
        "--kv_cache_max_len",
        metavar="S",
        type=int,
        help=f"tokens that the caches hold ({CAPACITY}, or as many as the model has positions)",
    )
    add(
        "--kv_cache_buckets",
        metavar="A,B",
        type=number_list,
        default=(),
        help="capacities of further decode signatures, decode_A, decode_B: for runtimes that go on in the "
        "smallest that holds the text, as runtime_py does by itself (none)",
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
    add("--report", metavar="FILE", help="write what quantising cost, tensor by tensor, there, as JSON")
    add_boolean(parser, "use_flash_attention", False, "attention in blocks, which needs less memory")
    add(
        "--flash_q_block",
        metavar="N",
        type=int,
        help="queries at a time (32 to 256, by prefill)",
    )
    add("--flash_kv_block", metavar="N", type=int, help="keys at a time (512)")
    add_boolean(parser, "enable_hlfb", False, "wrap attention and norms in composites, for accelerators")
    add_boolean(parser, "output_logits_on_prefill", False, "let prefills give logits [1,T,V]")
    add("--output_path", metavar="PATH", default="/tmp/", help="folder, or FILE.tflite (%(default)s)")
    add(
        "--output_name_prefix",
        metavar="NAME",
        default="tinyllama",
        help="of NAME_q8_ekv1280.tflite (%(default)s)",
    )
    add("--debug", action="store_true", help="show where an error comes from")
    return parser


def convert(args: argparse.Namespace) -> None:
    """Say what it takes, do it, and say what came of it."""
    started = time.monotonic()
    checkpoint = checkpoint_at(args.checkpoint_path)
    conversion = conversion_of(args, checkpoint.directory)
    target = target_of(args, conversion)
    size = conversion.size(needs(checkpoint.tensors, 0, 1, "float32", embed=True).parameters)
    check_disk(target.parent, size, "the model")
    say(f"{target} will take about {gigabytes(size)}")
    with shell.workshop(target.parent) as folder:
        if code := shell.run(conversion.commands(), folder):
            raise shell.failed(code, f"{target} is as it was" if target.exists() else "nothing was written")
        os.replace(folder / "model.tflite", target)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    say(
        f"wrote {target}, {gigabytes(target.stat().st_size)} in {seconds:.1f} s, with {gigabytes(peak)} of "
        "memory in the largest process"
    )


def conversion_of(args: argparse.Namespace, directory: Path) -> Conversion:
    """What the flags ask for. Raises UsageError, in the flags' own words."""
    lengths = sorted(set(args.prefill_seq_lens or LENGTHS))
    positions = positions_of(directory)
    capacity = args.kv_cache_max_len
    if capacity is None:
        capacity = min(CAPACITY, positions or CAPACITY)
    told, longest = f"--kv_cache_max_len {capacity}", lengths[-1]
    if capacity < longest:
        raise errors.UsageError(f"{told} is below the prefill length {longest}: make it {longest} or more")
    if positions and capacity > positions:
        raise errors.UsageError(f"{told}: this model has {positions} positions, make it {positions} or less")
    blocks = [size for size in (args.flash_q_block, args.flash_kv_block) if size is not None]
    if blocks and not args.use_flash_attention:
        raise errors.UsageError("--flash_q_block and --flash_kv_block go with --use_flash_attention")
    if blocks and min(blocks) < 1:
        raise errors.UsageError("--flash_q_block, --flash_kv_block: a block has 1 query and 1 key at least")
    recipe = args.quantize.lower()
    recipe = RECIPE if recipe in TRUE else "none" if recipe in FALSE else args.quantize
    if args.report and recipe == "none":
        raise errors.UsageError("--report is about quantising: give --quantize, too")
    report = Path(args.report).expanduser().absolute() if args.report else None
    if report is not None and not report.parent.is_dir():
        raise errors.UsageError(f"--report: no such folder: {report.parent}")
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
    )


def target_of(args: argparse.Namespace, conversion: Conversion) -> Path:
    """The file to write. Raises UsageError when its folder is missing."""
    target = Path(args.output_path).expanduser().absolute()
    if target.suffix != ".tflite":
        target /= f"{args.output_name_prefix}_{conversion.tag}.tflite"
    if not target.parent.is_dir():
        raise errors.UsageError(f"--output_path: no such folder: {target.parent}")
    return target


def say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> None:
        args = parser().parse_args(arguments)
        with shell.ended_by_signals():
            convert(args)

    return command.run(PROGRAM, body, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
