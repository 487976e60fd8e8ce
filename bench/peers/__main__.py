"""This project and its peers in one table: `python -m bench.peers`.

Makes a random checkpoint of each shape, converts it for llama.cpp, onnxruntime-genai, Hugging Face,
litert-torch and this project, lets all of them read the same prompts on as many threads, in turn, and prints
tokens a second, loading times and memory, and this project's ratios to each peer, of the same round.

Peers are installed when they are first needed, each in a virtual environment of its own. One that cannot be
installed, converted or run, or that computes something else, is left out with the reason. What is made is
kept and used again; bench/peers/README.md says what is compared, and what is fair about it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # as `python bench/peers`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.peers import environments, files
from bench.peers.processes import PeerFailed
from bench.peers.rounds import Contender, Found, Plan, measure
from bench.peers.table import pairs, table
from bench.peers.variants import EVERY, PEERS, VARIANTS
from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from o2o.errors import UsageError


def parser() -> Parser:
    parser = Parser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    keys = [peer.key for peer in PEERS]
    add("--shapes", nargs="+", choices=EVERY, default=list(EVERY), help="(all)")
    add("--peers", nargs="+", choices=keys, default=keys, metavar="PEER", help=f"of {', '.join(keys)} (all)")
    add("--rounds", type=positive_int, default=3, metavar="N", help="(%(default)s)")
    add("--threads", type=positive_int, default=2, metavar="N", help="of each (%(default)s)")
    add(
        "--lengths",
        type=positive_int,
        nargs="+",
        default=[128, 512],
        metavar="N",
        help="of prompts (128 512)",
    )
    add("--tokens", type=positive_int, default=32, metavar="N", help="decoded behind each (%(default)s)")
    add("--seconds", type=float, default=1.0, metavar="S", help="each is measured in a round (%(default)s)")
    add("--capacity", type=positive_int, default=1024, metavar="S", help="tokens caches hold (%(default)s)")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="what is converted is kept there (`work` in the user's cache)",
    )
    add("--environments", type=Path, metavar="DIR", help="of the peers (`environments` in the user's cache)")
    add("--torch", default=environments.TORCH, metavar="SPEC", help="what pip installs (%(default)s)")
    add("--again", nargs="+", choices=keys, default=[], metavar="PEER", help="convert anew for these")
    add("--prepare", action="store_true", help="install and convert, do not measure")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser


def prepare(shape: str, checkpoint: Path, args: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """The variants of `shape` with their interpreters and models, and why others are missing."""
    contenders, failed = list[Contender](), dict[str, str]()
    if args.again:
        files.remove(shape, args.work, args.again)
    for variant in VARIANTS:
        peer, log = variant.peer, args.work / "logs" / f"{shape}-{variant.name.replace(' ', '-')}.log"
        if shape not in variant.shapes or peer.key not in args.peers or peer.name in failed:
            continue
        name = peer.name  # an environment that fails, fails for all variants
        try:
            install = args.work / "logs" / f"install-{peer.key}.log"
            python = environments.python_of(peer, args.environments, install, args.torch)
            name = variant.name
            model = files.model_of(variant, python, checkpoint, args.capacity, log)
        except PeerFailed as error:
            failed[name] = str(error)
            say(f"{name} is left out: {error}")
            continue
        log.unlink(missing_ok=True)
        contenders.append(Contender(variant, python, model, checkpoint, files.size_of(model), log))
    return contenders, failed


def told(found: Found, contenders: Sequence[Contender]) -> dict[str, Any]:
    """A shape as JSON."""
    variants = [one.variant for one in contenders]
    return {
        "variants": {one.variant.name: {"bits": one.variant.bits, "bytes": one.size} for one in contenders},
        "correlations": found.correlations,
        "rounds": found.rounds,
        "ratios": pairs(found.rounds, variants),
        "failed": found.failed,
        "loaded_together": found.together,
    }


def machine() -> str:
    """`2 x AMD EPYC`."""
    told = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    names = [value.strip() for key, value in told if key.strip() == "model name"]
    return f"{os.cpu_count()} x {names[0] if names else os.uname().machine}"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half done goes away, as on Ctrl-C

    def body() -> int:
        args = parser().parse_args(argv)
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
        shapes: dict[str, Any] = {}
        for shape in args.shapes:
            checkpoint = files.checkpoint_of(shape, args.work, args.work / "logs" / f"{shape}.log")
            contenders, failed = prepare(shape, checkpoint, args)
            if args.prepare:
                continue
            vocab_size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
            found = measure(contenders, vocab_size, plan, say)
            found.failed = failed | found.failed
            sizes = {one.variant.name: one.size for one in contenders}
            seen = [one.variant for one in contenders if any(r.get(one.variant.name) for r in found.rounds)]
            print(*table(shape, found.rounds, seen, sizes, found.correlations), sep="\n")
            for name, reason in found.failed.items():
                print(f"{name} is left out: {reason}")
            sys.stdout.flush()
            shapes[shape] = told(found, contenders)
            if args.json:  # after each shape: an hour may pass until the last
                settings = {key: value for key, value in vars(args).items() if key not in ("json", "debug")}
                whole = {"version": 1, "machine": machine(), "settings": settings, "shapes": shapes}
                args.json.write_text(json.dumps(whole, indent=1, default=str) + "\n")
        return 0

    return run("bench.peers", body, debug="--debug" in argv)


def say(line: str) -> None:
    print(f"bench.peers: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
