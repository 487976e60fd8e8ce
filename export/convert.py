"""Convert a checkpoint to a package: `o2o convert MODEL -o PACKAGE`.

MODEL is a checkpoint's folder, a GGUF file, a decoder in ONNX, or an id on the Hugging Face hub. PACKAGE is a
folder with one model, its tokenizer and its configuration; `o2o run PACKAGE` runs it.

    circle   Samsung ONE's format. All engines run it: litert, onnx and onert
    tflite   TensorFlow Lite with AI Edge's signatures, for LiteRT and programs made for such files
    onnx     one graph for prompts and decoding, for ONNX Runtime; --onnx-form standard for other runtimes
    litertlm TFLite, tokenizer and chat template in one file, for Google's LiteRT-LM

Each command is shown before it runs. The package changes when all of them have succeeded.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("convert")

import argparse
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from o2o.cli import command
from o2o.cli.arguments import Parser, number_list, positive_int

if TYPE_CHECKING:
    from export.config import CheckpointConfig
    from export.package_builder import PackageBuilder, Plan

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
MAX_LENGTH = 1024
"""Default tokens of context, for a model that has as many positions."""


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    from export.loading_flags import add_adapter_flag, add_loading_flags
    from export.options import CacheForm, WeightsType
    from o2o.quantization.recipes import RECIPES

    parser = Parser(
        prog="python -m export.convert",
        description=__doc__,
        examples=[
            "o2o convert ./my-checkpoint -o my-package --max-length 1024",
            "o2o convert ./my-checkpoint -o my-package --format tflite --quantize dynamic_int8",
            "o2o convert ./my-checkpoint -o my-package --format onnx --dry-run",
        ],
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="the checkpoint's folder, a GGUF file, a decoder in ONNX whose caches grow, or its folder, "
        "or an id on the Hugging Face hub",
    )
    add("-o", "--output", metavar="PACKAGE", required=True, help="folder to fill")
    add("--format", choices=("circle", "tflite", "onnx", "litertlm"), default="circle", help="(%(default)s)")
    add(
        "--quantize", metavar="RECIPE", default="none", help=f"of weights: {', '.join(RECIPES)} (%(default)s)"
    )
    add(
        "--max-length",
        metavar="N",
        type=positive_int,
        help=f"tokens of context ({MAX_LENGTH:,}, or the model's positions)",
    )
    add(
        "--prefill-lengths",
        metavar="A,B",
        type=number_list,
        help="tokens that one prefill reads, one graph for each length (64,128,256, if they fit; "
        "for litertlm also 8)",
    )
    add(
        "--cache",
        choices=get_args(CacheForm),
        help="static: decode writes its row into the caches; concat: it appends the row, and fusing makes a "
        "write of it (default: static)",
    )
    add(
        "--full-caches",
        action="store_true",
        help="keep all rows in the KV caches of layers with a sliding window, too: a text can go back to any "
        "position. By default, a long context has smaller caches there (circle and onnx)",
    )
    add(
        "--dtype",
        choices=get_args(WeightsType),
        default="float32",
        help="of stored matrices, without --quantize (%(default)s)",
    )
    add(
        "--onnx-form",
        choices=("ort", "standard", "genai"),
        default="ort",
        help="ort: ONNX Runtime's own operators too, the fastest; standard: ONNX opset 24 only; genai: for "
        "onnxruntime-genai, with genai_config.json (%(default)s)",
    )
    add(
        "--tokenizer",
        metavar="PATH",
        type=Path,
        help="folder or file of the tokenizer, for a checkpoint that has none",
    )
    add_adapter_flag(parser)
    add_loading_flags(parser)
    add("--dry-run", action="store_true", help="print the plan, check what can be checked, write nothing")
    add("--if-changed", action="store_true", help="do nothing if the package is up to date")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def convert(args: argparse.Namespace) -> None:
    """Convert as the command line describes.

    Args:
        args: The parsed command line.

    Raises:
        UsageError: Options exclude each other, or the model excludes one.
        ModelError: The checkpoint cannot be converted.
        O2oError: The export extra is missing, or disk or memory does not suffice.
    """
    from o2o.cli.extras import require
    from o2o.errors import UsageError

    require("export")
    if not args.output:
        raise UsageError("--output: the folder's name is empty")

    from export.config import CheckpointConfig
    from export.hub import resolve
    from export.onnx_decoder import find_onnx
    from export.package_builder import PackageBuilder
    from export.preflight import check_model
    from export.shell import with_debug
    from o2o.weights.checkpoint import adapter_file, open_checkpoint

    log = partial(command.report, "convert")
    if (decoder := find_onnx(args.model)) is not None:
        _convert_onnx(args, decoder, log)
        return
    notes: list[str] = []
    directory = resolve(args.model, not args.dry_run, args.adapter, notes.append).absolute()
    for note in notes:
        log(f"note: {note}")
    if name := adapter_file(directory):
        log(f"note: {name} is an adapter (LoRA) beside the weights: --adapter {directory} merges it")
    config = CheckpointConfig.read(directory)
    check_model(config, directory)
    builder = PackageBuilder(
        directory,
        Path(args.output),
        args.max_length or default_length(config),
        args.prefill_lengths,
        log,
        args.if_changed,
        "--output",
        "o2o run",
        args.tokenizer and args.tokenizer.absolute(),
    )
    plan = builder.plan(args.format, args.quantize, args.cache, args.dtype, args.onnx_form, args.full_caches)
    if args.debug:
        plan = replace(plan, steps=[with_debug(step) for step in plan.steps])
    builder.check(plan)
    has_tokenizer = args.tokenizer or any((directory / name).is_file() for name in TOKENIZERS)
    if not has_tokenizer and not any("--tokenizer DIR" in note for note in notes):
        log(f"note: {args.model} has no tokenizer: give one with --tokenizer DIR, here or to o2o run")
    if args.dry_run:
        tensors = open_checkpoint(directory).tensors
        print(*describe(config, tensors, builder, plan), sep="\n")
    else:
        builder.build(plan)


def _convert_onnx(args: argparse.Namespace, file: Path, log: Callable[[str], None]) -> None:
    """Convert a decoder in ONNX."""
    from export.loading_flags import model_file
    from export.onnx_decoder import OnnxDecoder
    from export.package_builder import PackageBuilder, Plan
    from o2o.errors import UsageError

    for flag, is_given in (
        ("--cache", args.cache),
        ("--dtype", args.dtype != "float32"),
        ("--adapter", args.adapter),
        ("--model-file", model_file()),
    ):
        if is_given:
            raise UsageError(f"{flag} needs a checkpoint, and {file} is ONNX")
    decoder = OnnxDecoder(file, args.max_length, args.prefill_lengths)
    if Path(args.output).absolute() in (decoder.folder, file.absolute().parent):
        raise UsageError(f"--output {args.output} is the folder of {file.name}: give another folder")
    builder = PackageBuilder(
        decoder.folder,
        Path(args.output),
        decoder.capacity,
        args.prefill_lengths,
        log,
        args.if_changed,
        "--output",
        "o2o run",
        args.tokenizer and args.tokenizer.absolute(),
        decoder.files,
    )
    steps = decoder.commands(args.format, args.quantize, args.onnx_form)
    needs, size = decoder.needs(args.format, args.quantize)
    graphs = decoder.graphs(args.format)
    plan = Plan(steps, f"model.{args.format}", graphs, needs, size, needs.graphs + 2 * size)
    builder.check(plan)
    if not args.tokenizer and not any((decoder.folder / name).is_file() for name in TOKENIZERS):
        log(f"note: {decoder.folder} has no tokenizer: give one with --tokenizer DIR, here or to o2o run")
    if args.dry_run:
        print(*decoder.describe(builder.package, steps, args.format), sep="\n")
    else:
        builder.build(plan)


def default_length(config: CheckpointConfig) -> int:
    """Choose the tokens of context.

    Args:
        config: The checkpoint's configuration.

    Returns:
        `MAX_LENGTH`, or less if the model has fewer positions.
    """
    return min(limit for limit in (MAX_LENGTH, config.positions) if limit)


def describe(
    config: CheckpointConfig, tensors: Collection[str], builder: PackageBuilder, plan: Plan
) -> Iterator[str]:
    """Describe a plan.

    Args:
        config: The checkpoint's configuration.
        tensors: The names of its tensors.
        builder: It made the plan.
        plan: The plan.

    Yields:
        Lines for the user.
    """
    from export.model_traits import targets, traits
    from export.package_files import FILES
    from export.resources import available_memory, format_bytes
    from o2o.cli.text import counted, listed

    needs = plan.needs
    yield (f"checkpoint  {builder.checkpoint}: {needs.parameters:,} parameters, {format_bytes(needs.stored)}")
    phrases = [f"{config.model_type}, {counted(config.layers, 'layer')}", *traits(config, tensors)]
    yield from _wrapped("model", "; ".join(phrases))
    for number, line in enumerate(targets(config, tensors, builder.max_length)):
        yield f"{'' if number else 'targets':12}{line}"
    yield f"package     {builder.package / plan.model}: about {format_bytes(plan.size)}"
    windowed = config.windowed_layers if plan.window_rows is not None else ()
    cache = 0
    for layer, (_, K, H) in enumerate(config.attention_layers):
        cache += 8 * K * H * ((plan.window_rows or 0) if layer in windowed else builder.max_length)
    ropes = (rope.choice(builder.max_length, config.positions) for rope in config.ropes)
    choices = "".join(f", {choice}" for choice in dict.fromkeys(ropes) if choice)
    yield f"context     {counted(builder.max_length, 'token')}{choices}, {format_bytes(cache)} of KV caches"
    yield f"graphs      {listed([spec.signature for spec in plan.graphs])}"
    yield f"files       {listed([name for name in FILES if (builder.checkpoint / name).is_file()])}"
    yield f"disk        {format_bytes(plan.disk)} while it is built"
    yield (
        f"memory      {format_bytes(needs.memory)} for each process that exports; "
        f"{format_bytes(available_memory())} are free"
    )
    yield "commands"
    for step in plan.steps:
        yield from (f"    {line}" for line in step.strip().splitlines())


def _wrapped(title: str, text: str) -> list[str]:
    """Lines of 110 characters; the title stands before the first."""
    return textwrap.wrap(text, 110, initial_indent=f"{title:12}", subsequent_indent=" " * 12)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for a model that cannot be converted; 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run(
        "convert", lambda: convert(parser().parse_args(arguments)), debug="--debug" in arguments
    )


if __name__ == "__main__":
    sys.exit(main())
