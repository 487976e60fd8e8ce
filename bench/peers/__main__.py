"""Benchmark this project and its peers: `python -m bench.peers`.

The command creates a random checkpoint of each shape and converts it for llama.cpp, onnxruntime-genai,
Hugging Face, litert-torch, LiteRT-LM and this project. All of them read the same prompts in turn, with equal
threads. It prints tokens/s, loading times and memory, and the ratios of this project to each peer in the same
round.

Peers are installed when they are first needed, each in its own virtual environment. A peer that cannot be
installed, converted or run, or that computes something else, is left out; the reason is printed. Conversions
are cached. bench/peers/README.md describes what is compared, and how fair it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # as `python bench/peers`
        sys.path[0] = str(Path(__file__).resolve().parents[2])
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("bench.peers")

import argparse
import json
import signal
from collections.abc import Sequence
from typing import Any

from bench.peers import environments, files
from bench.peers.comparison import comparison, read_report
from bench.peers.processes import PeerFailed
from bench.peers.processor import processor
from bench.peers.rounds import Contender, Plan, Results, measure
from bench.peers.table import pairs, table
from bench.peers.variants import ALL_SHAPES, PEERS, VARIANTS
from export.config import CheckpointConfig
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import UsageError


def parser() -> Parser:
    """Build the command's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    keys = [peer.key for peer in PEERS]
    add("--shapes", nargs="+", choices=ALL_SHAPES, default=list(ALL_SHAPES), help="(default: all)")
    add(
        "--peers",
        nargs="+",
        choices=keys,
        default=keys,
        metavar="PEER",
        help=f"of {', '.join(keys)} (default: all)",
    )
    add("--rounds", type=positive_int, default=3, metavar="N", help="(default: %(default)s)")
    add("--threads", type=positive_int, default=2, metavar="N", help="threads of each (default: %(default)s)")
    add(
        "--lengths",
        type=positive_int,
        nargs="+",
        default=[128, 512],
        metavar="N",
        help="prompt lengths (default: 128,512)",
    )
    add(
        "--tokens",
        type=positive_int,
        default=32,
        metavar="N",
        help="tokens decoded after each prompt (default: %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="measuring time of each task in a round (default: %(default)s)",
    )
    add(
        "--capacity",
        type=positive_int,
        default=1024,
        metavar="S",
        help="capacity of the KV caches (default: %(default)s)",
    )
    add("--work", type=Path, metavar="DIR", help="folder for conversions (default: in the user's cache)")
    add(
        "--environments",
        type=Path,
        metavar="DIR",
        help="folder for virtual environments (default: in the user's cache)",
    )
    add(
        "--torch",
        default=environments.TORCH,
        metavar="SPEC",
        help="requirement for PyTorch (default: %(default)s)",
    )
    add("--again", nargs="+", choices=keys, default=[], metavar="PEER", help="convert again for these peers")
    add("--prepare", action="store_true", help="install and convert, do not measure")
    add("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    add(
        "--compare",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: print the ratios of files of --json, with a column for each processor",
    )
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def prepare(shape: str, checkpoint: Path, args: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """Install the peers and convert the checkpoint of a shape.

    Args:
        shape: The shape.
        checkpoint: The checkpoint's folder.
        args: The command's arguments.

    Returns:
        The variants that can be run, and the reason for each failure by variant or peer.
    """
    contenders, failed = list[Contender](), dict[str, str]()
    if args.again:
        files.remove(shape, args.work, args.again)
    for variant in VARIANTS:
        peer, log_file = variant.peer, args.work / "logs" / f"{shape}-{variant.name.replace(' ', '-')}.log"
        if shape not in variant.shapes or peer.key not in args.peers or peer.name in failed:
            continue
        name = peer.name  # without its environment, all variants of a peer fail
        try:
            install = args.work / "logs" / f"install-{peer.key}.log"
            python = environments.python_of(peer, args.environments, install, args.torch)
            name = variant.name
            model = files.model_of(variant, python, checkpoint, args.capacity, log_file)
        except PeerFailed as error:
            failed[name] = str(error)
            log(f"{name} is left out: {error}")
            continue
        log_file.unlink(missing_ok=True)
        contenders.append(Contender(variant, python, model, checkpoint, files.size_of(model), log_file))
    return contenders, failed


def to_json(results: Results, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Convert the measurements of a shape to JSON.

    Args:
        results: The measurements.
        contenders: All contenders, including the failed ones.

    Returns:
        An object for JSON.
    """
    variants = [one.variant for one in contenders]
    return {
        "variants": {one.variant.name: {"bits": one.variant.bits, "bytes": one.size} for one in contenders},
        "correlations": results.correlations,
        "rounds": results.rounds,
        "ratios": pairs(results.rounds, variants),
        "failed": results.failed,
        "loaded_together": results.together,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 for a failure; 2 for wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for SIGINT

    return run("bench.peers", lambda: _run(parser().parse_args(argv)), debug="--debug" in argv)


def _run(args: argparse.Namespace) -> int:
    if args.compare:
        print(*comparison(list(map(read_report, args.compare))), sep="\n")
        return 0
    args.work = (args.work or environments.user_folder() / "work").absolute()
    args.environments = (args.environments or environments.user_folder() / "environments").absolute()
    if (most := max(args.lengths) + 1 + args.tokens) > args.capacity:
        raise UsageError(f"--capacity {args.capacity}: give {most} for these --lengths and --tokens")
    if args.capacity > files.POSITIONS:
        raise UsageError(f"--capacity {args.capacity}: the models have {files.POSITIONS} positions")
    if args.json and not args.json.absolute().parent.is_dir():
        raise UsageError(f"{args.json}: no such folder")
    plan = Plan(
        args.rounds,
        args.threads,
        args.lengths,
        args.tokens,
        args.seconds,
        args.capacity,
        args.work / "cache",
    )
    here = processor()
    log(f"processor: {here}; {', '.join(here.instruction_sets) or 'no known instruction sets'}")
    shapes: dict[str, Any] = {}
    for shape in args.shapes:
        checkpoint = files.checkpoint_of(shape, args.work, args.work / "logs" / f"{shape}.log")
        contenders, failed = prepare(shape, checkpoint, args)
        if args.prepare:
            continue
        vocab_size = CheckpointConfig.read(checkpoint).vocab_size
        results = measure(contenders, vocab_size, plan, log)
        results.failed = failed | results.failed
        sizes = {one.variant.name: one.size for one in contenders}
        seen = [one.variant for one in contenders if any(r.get(one.variant.name) for r in results.rounds)]
        print(*table(shape, results.rounds, seen, sizes, results.correlations), sep="\n")
        for name, reason in results.failed.items():
            print(f"{name} is left out: {reason}")
        sys.stdout.flush()
        shapes[shape] = to_json(results, contenders)
        if args.json:  # after each shape, as the next may take an hour
            settings = {key: value for key, value in vars(args).items() if key not in ("json", "debug")}
            whole = {
                "version": 1,
                "machine": str(here),
                "processor": here.as_json(),
                "settings": settings,
                "shapes": shapes,
            }
            args.json.write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return 0


def log(message: str) -> None:
    """Print a message on stderr.

    Args:
        message: One line.
    """
    print(f"bench.peers: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
