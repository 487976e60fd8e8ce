"""Held-out texts on a command line: which, how much of them, and how they are fed to packages."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import positive_int
from o2o.cli.text import counted
from o2o.errors import ModelError, UsageError
from runtime_py.engines.flags import add_engine_flags, options_from

if TYPE_CHECKING:
    import numpy as np

    from runtime_py.package import Package


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Those that `read` and `feed` look at."""
    add = parser.add_argument
    text = parser.add_mutually_exclusive_group(required=required)
    text.add_argument("--text", metavar="FILE", help="texts, with a blank line between two")
    text.add_argument("--ids", metavar="FILE", help="texts as token ids, a line each, where is no tokenizer")
    add("--max-tokens", metavar="N", type=positive_int, help="predict N tokens at most (all)")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer, where it is not with the models")
    add_engine_flags(parser)
    add("--no-cache", action="store_true", help="keep nothing of big models on disk for the next load")
    add("--debug", action="store_true", help="show the runtime's log, and tracebacks")


def read(args: argparse.Namespace, packages: Sequence[Package]) -> list[list[int]]:
    """The documents as ids, which all `packages` are fed. Raises UsageError for texts in which nothing can be
    predicted, ModelError where the packages' tokenizers do not agree on them."""
    from runtime_py.evaluation.log_likelihood import documents, first

    if args.ids is not None:
        encoded = [_ids(args.ids, number, line) for number, line in enumerate(_lines(args.ids), 1)]
    else:
        texts = documents("".join(_lines(args.text)))
        encoded = [packages[0].tokenizer.encode(text) for text in texts]
        for package in packages[1:]:
            if [package.tokenizer.encode(text) for text in texts] != encoded:
                raise ModelError(
                    f"{package.model}: its tokenizer gives other ids than that of {packages[0].model}, "
                    "so they cannot be compared"
                )
    found = [list(ids) for ids in first(encoded, args.max_tokens)]
    if not found:
        raise UsageError(f"{args.text or args.ids} has no text in which a token could be predicted")
    return found


def _lines(path: str) -> list[str]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            return list(file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 ({error})") from error


def _ids(path: str, number: int, line: str) -> list[int]:
    try:
        ids = [int(word) for word in line.split()]
    except ValueError as error:
        raise UsageError(f"{path}, line {number}: no token ids ({error})") from error
    if min(ids, default=0) < 0:
        raise UsageError(f"{path}, line {number}: {min(ids)} is no token id")
    return ids


def feed(package: Package, documents: Sequence[Sequence[int]], args: argparse.Namespace) -> list[np.ndarray]:
    """What surprises `package` in each of the documents, see
    `runtime_py.evaluation.log_likelihood`. Raises ModelError.
    """
    from runtime_py.evaluation.log_likelihood import surprises

    def say(line: str) -> None:
        print(f"{package.model}: {line}", file=sys.stderr)

    with (
        contextlib.closing(package.engine(options_from(args, say))) as engine,
        contextlib.closing(engine.open_session()) as session,
    ):
        if (highest := max(map(max, documents))) >= engine.vocab_size:
            raise ModelError(f"{package.model} knows ids below {engine.vocab_size}, the text has {highest}")
        try:
            return [surprises(session, ids) for ids in documents]
        except ModelError as error:
            raise ModelError(f"{package.model}: {error}") from error


def told(
    args: argparse.Namespace, documents: Sequence[Sequence[int]], found: Sequence[Sequence[np.ndarray]]
) -> str:
    """`held_out.txt: 64 documents, 5,432 tokens`, and what was cut."""
    read = [min(map(len, of_document)) for of_document in zip(*found, strict=True)]
    cut = sum(count < len(ids) - 1 for count, ids in zip(read, documents, strict=True))
    line = f"{args.text or args.ids}: {counted(len(documents), 'document')}, {counted(sum(read), 'token')}"
    return line + (f"; {cut} cut to the {max(read)} tokens that can be predicted" if cut else "")
