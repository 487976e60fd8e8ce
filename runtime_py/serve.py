"""Serve packages over HTTP: the APIs of OpenAI and llama.cpp."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("serve")  # before the slow imports

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import report, run
from o2o.errors import UsageError
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    from runtime_py.package import Package
    from runtime_py.server.settings import ServerSettings

KEY_VARIABLE = "O2O_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0 after SIGINT or SIGTERM; 1 for a package that cannot be served; 2 for wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run("serve", lambda: execute(parser().parse_args(argv)), debug="--debug" in argv)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="o2o serve",
        description="Serve packages over HTTP, by the APIs of OpenAI and llama.cpp. SIGINT ends the server.",
        examples=[
            "o2o serve my-package",
            "o2o serve small=./135m large=./1b --max-loaded 2 --port 9000",
        ],
    )
    parser.add_argument(
        "packages",
        nargs="+",
        metavar="[NAME=]PACKAGE",
        help="package, as for `o2o run`; NAME is its name in requests (default: the name of the folder)",
    )
    add = parser.add_argument_group("address and access").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8080, help="port; 0 for a free one (default: 8080)")
    add(
        "--api-key",
        metavar="KEY",
        action="append",
        default=[],
        help=f"key that requests must send; repeatable (default: ${KEY_VARIABLE}, else no key)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="name of this server in the header Host, in addition to IP addresses and localhost; repeatable",
    )
    add(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="origin of a page elsewhere that may call the API, such as https://example.org; repeatable",
    )
    add = parser.add_argument_group("limits").add_argument
    add(
        "--parallel",
        metavar="N",
        type=positive_int,
        default=4,
        help="texts of a model that are generated at once; each has KV caches (default: 4)",
    )
    add(
        "--queue",
        metavar="N",
        type=_natural,
        default=32,
        help="requests of a model that wait; further ones get status 429 (default: 32)",
    )
    add(
        "--max-loaded",
        metavar="N",
        type=positive_int,
        default=1,
        help="models in memory; the least recently used one is unloaded (default: 1)",
    )
    add(
        "--max-body",
        metavar="BYTES",
        type=positive_int,
        default=8 << 20,
        help="largest body of a request (default: 8 MiB)",
    )
    add(
        "--max-grammar",
        metavar="BYTES",
        type=positive_int,
        default=64 << 10,
        help="largest grammar or JSON schema (default: 64 KiB)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=600.0,
        help="limit of waiting, and of generating one text (default: 600)",
    )
    add(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="time for running requests after SIGINT or SIGTERM (default: 10)",
    )
    add(
        "--any-model",
        action="store_true",
        help="take any name of a model in requests: an unknown one means the first package",
    )
    add = parser.add_argument_group(
        "generation, for the fields that a request does not set (default: as generation_config.json says)"
    ).add_argument
    add("--max-new-tokens", metavar="N", type=positive_int, help="limit of every text; requests may set less")
    add("--temperature", metavar="X", type=float, help="0 is the most likely token")
    add("--top-k", metavar="N", type=int)
    add("--top-p", metavar="X", type=float)
    add("--min-p", metavar="X", type=float)
    add("--repetition-penalty", metavar="X", type=float)
    add(
        "--seed",
        metavar="N",
        type=int,
        help="seed of the random numbers (default: random)",
    )
    add_engine_flags(parser)
    parser.add_argument(
        "--slot-save-path",
        metavar="DIR",
        type=Path,
        help="existing folder for POST /slots/ID?action=save and restore (default: neither is offered)",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="store nothing in the disk cache, and so measure no engines",
    )
    parser.add_argument("--debug", action="store_true", help="show the engine's log, and tracebacks")
    return parser


def execute(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.

    Raises:
        ModelError: There is no such package.
        UsageError: Two packages have the same name, or the address cannot be used.
    """
    from o2o.cli.extras import require

    require("serve")
    from runtime_py.server.app import App
    from runtime_py.server.listener import serve

    settings = settings_from(args)
    packages = packages_from(args, settings)
    first = next(iter(packages.values()))
    if len(packages) == 1:
        first.session().close()  # loads it: what is wrong with it is said now
    app = App(packages, settings, _log, args.debug)
    if len(packages) == 1:
        app.service.models.mark_loaded(next(iter(packages)))
    return serve(app, settings, _log)


def settings_from(args: argparse.Namespace) -> ServerSettings:
    """Return the settings of a command line.

    Args:
        args: The parsed flags.

    Returns:
        The settings.

    Raises:
        UsageError: A key is empty, or a number is out of range.
    """
    from runtime_py.generation import setting_types
    from runtime_py.generation.sampling import Sampling
    from runtime_py.server.settings import ServerSettings

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = {name: getattr(args, name) for name in names}
    keys = args.api_key or [key for key in [os.environ.get(KEY_VARIABLE)] if key]
    if not all(key.strip() for key in keys):
        raise UsageError("--api-key is empty: give a key, or leave out the flag")
    if args.seed is not None:
        setting_types.check("seed", args.seed)
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: a port is a number from 0 to 65535")
    if args.slot_save_path is not None and not args.slot_save_path.is_dir():
        raise UsageError(f"--slot-save-path {args.slot_save_path}: no such folder")
    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        allowed_hosts=tuple(args.allow_host),
        allowed_origins=tuple(args.allow_origin),
        parallel=args.parallel,
        queue=args.queue,
        max_body=args.max_body,
        max_grammar=args.max_grammar,
        timeout=args.timeout,
        grace=args.grace,
        max_loaded=args.max_loaded,
        any_model=args.any_model,
        sampling=Sampling(**sampling) if any(value is not None for value in sampling.values()) else None,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        slot_save_path=args.slot_save_path,
    )


def packages_from(args: argparse.Namespace, settings: ServerSettings) -> dict[str, Package]:
    """Find the packages of a command line.

    Args:
        args: The parsed flags.
        settings: The settings of the server.

    Returns:
        The packages by name.

    Raises:
        ModelError: There is no such package.
        UsageError: Two packages have the same name.
    """
    from runtime_py.package import Package

    options = options_from(args, _log)
    packages: dict[str, Package] = {}
    for argument in args.packages:
        name, separator, path = argument.partition("=")
        if not separator or Path(argument).exists():
            name, path = Path(argument).resolve().name, argument
        if not name or name in packages:
            raise UsageError(f"{argument}: give each package a name of its own, such as NAME={path}")
        packages[name] = Package.load(path, options=options, max_sessions=settings.parallel)
    return packages


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def _log(message: str) -> None:
    report("serve", message)


if __name__ == "__main__":
    sys.exit(main())
