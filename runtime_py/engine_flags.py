"""Command-line flags that choose and configure an engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from o2o.cli.arguments import positive_int
from o2o.streams.disk_cache import user_cache
from runtime_py.engines.options import AUTO, EngineOptions
from runtime_py.engines.registry import ENGINES

ENGINE_NAMES = (AUTO, *ENGINES)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--engine` to a parser.

    Args:
        parser: The parser of a command that loads a model.
    """
    parser.add_argument("--threads", metavar="N", type=positive_int, help="default: the measured fastest")
    parser.add_argument(
        "--engine",
        choices=ENGINE_NAMES,
        default=AUTO,
        help="default: the fastest installed engine, measured at the first load of the model",
    )


def options_from(args: argparse.Namespace, log: Callable[[str], None]) -> EngineOptions:
    """Return the engine options of a command line.

    Args:
        args: Parsed flags. Of `--buckets`, `--speculate`, `--no-cache` and `--debug` a command may lack any.
        log: See `EngineOptions`.

    Returns:
        The options.
    """
    flags = vars(args)
    return EngineOptions(
        engine=args.engine,
        threads=args.threads,
        buckets=flags.get("buckets"),
        speculate=flags.get("speculate") != "off",
        rounded_drafts=flags.get("speculate") == "on",
        disk_cache=None if flags.get("no_cache") else user_cache(),
        debug=flags.get("debug", False),
        log=log,
    )
