"""Options of an engine from a command line."""

from __future__ import annotations

import argparse

import pytest

from o2o.cli.arguments import Parser
from o2o.errors import UsageError
from o2o.streams.disk_cache import user_cache
from runtime_py.engine_flags import add_engine_flags, options_from
from runtime_py.engines.registry import ENGINES


def parse(*argv: str) -> argparse.Namespace:
    parser = Parser()
    add_engine_flags(parser)
    parser.add_argument("--no-cache", action="store_true")
    return parser.parse_args(argv)


def test_defaults():
    options = options_from(parse(), print)
    assert (options.engine, options.threads, options.buckets, options.debug) == ("auto", None, None, False)
    assert options.log is print
    assert options.requested == frozenset()


def test_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    for name in ENGINES:
        options = options_from(parse("--engine", name, "--threads", "3"), print)
        assert (options.engine, options.threads, options.requested) == (name, 3, {"threads"})
        assert options.disk_cache.folder == user_cache().folder == tmp_path
    assert options_from(parse("--no-cache"), print).disk_cache is None


def test_an_unknown_engine():
    with pytest.raises(UsageError, match="invalid choice: 'steam'"):
        parse("--engine", "steam")
