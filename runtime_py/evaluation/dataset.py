"""Evaluation datasets on a command line: flags, reading, and evaluation with packages."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import positive_int
from o2o.cli.progress import progress
from o2o.cli.text import counted
from o2o.errors import ModelError, UsageError
from runtime_py.engine_flags import add_engine_flags, options_from

if TYPE_CHECKING:
    import numpy as np

    from runtime_py.engines.engine import EngineSession
    from runtime_py.evaluation.divergence import Divergence
    from runtime_py.package import Package


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flags that `read` and `evaluate` use.

    Args:
        parser: A command's parser.
        required: Whether a dataset is required.
    """
    add = parser.add_argument
    text = parser.add_mutually_exclusive_group(required=required)
    text.add_argument("--text", metavar="FILE", help="text file: documents with blank lines between them")
    text.add_argument(
        "--ids", metavar="FILE", help="text file: one document per line, as token ids; needs no tokenizer"
    )
    add("--max-tokens", metavar="N", type=positive_int, help="predict at most N tokens (default: all)")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the folder of each model)")
    add_engine_flags(parser)
    add(
        "--no-cache",
        action="store_true",
        help="store nothing in the disk cache, and so measure no engines",
    )
    add("--debug", action="store_true", help="show the engine's log, and tracebacks")


def read(args: argparse.Namespace, packages: Sequence[Package]) -> list[list[int]]:
    """Read the dataset as token ids.

    Args:
        args: The command's arguments.
        packages: The packages to evaluate.

    Returns:
        The ids of each document.

    Raises:
        UsageError: No token can be predicted, or the file is damaged.
        ModelError: The tokenizers of the packages give different ids.
    """
    from runtime_py.evaluation.log_likelihood import documents, take_tokens

    if args.ids is not None:
        encoded = [_ids(args.ids, number, line) for number, line in enumerate(_lines(args.ids), 1)]
    else:
        texts = documents("".join(_lines(args.text)))
        encoded = [packages[0].tokenizer.encode(text) for text in texts]
        for package in packages[1:]:
            if [package.tokenizer.encode(text) for text in texts] != encoded:
                raise ModelError(
                    f"{package.model} and {packages[0].model} have different tokenizers: "
                    "their perplexities cannot be compared"
                )
    dataset = [list(ids) for ids in take_tokens(encoded, args.max_tokens)]
    if not dataset:
        raise UsageError(f"{args.text or args.ids} has no document of two tokens or more: nothing to predict")
    return dataset


def _lines(path: str) -> list[str]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            return list(file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error})") from error


def _ids(path: str, number: int, line: str) -> list[int]:
    try:
        ids = [int(word) for word in line.split()]
    except ValueError as error:
        raise UsageError(f"{path}, line {number}: not a list of token ids ({error})") from error
    if min(ids, default=0) < 0:
        raise UsageError(f"{path}, line {number}: {min(ids)} is not a token id")
    return ids


def evaluate(
    package: Package, documents: Sequence[Sequence[int]], args: argparse.Namespace
) -> list[np.ndarray]:
    """Evaluate a package on a dataset.

    Args:
        package: The package.
        documents: The ids of each document.
        args: The command's arguments.

    Returns:
        The negative log-likelihoods of each document: see `runtime_py.evaluation.log_likelihood`.

    Raises:
        ModelError: The model cannot be run, an id is not below V, or logits are not finite.
    """
    from runtime_py.evaluation.log_likelihood import negative_log_likelihoods

    nlls = []
    with (
        open_scorer(package, documents, args) as session,
        _names(package),
        progress(package.model.name, sum(map(len, documents)), "tokens") as advance,
    ):
        for ids in documents:
            nlls.append(negative_log_likelihoods(session, ids))
            advance(len(ids))
    return nlls


def diverge(
    before: Package, after: Package, documents: Sequence[Sequence[int]], args: argparse.Namespace
) -> Divergence:
    """Compare the predictions of two packages on a dataset. Both are loaded at the same time.

    Args:
        before: The reference.
        after: The other package.
        documents: The ids of each document.
        args: The command's arguments.

    Returns:
        The figures of each predicted token.

    Raises:
        ModelError: See `evaluate`; or the numbers of logits differ.
    """
    from runtime_py.evaluation.divergence import compare_predictions

    with (
        open_scorer(before, documents, args) as one,
        open_scorer(after, documents, args) as other,
        progress("compare", sum(map(len, documents)), "tokens") as advance,
    ):
        return compare_predictions(one, other, documents, advance)


@contextlib.contextmanager
def open_scorer(
    package: Package, documents: Sequence[Sequence[int]], args: argparse.Namespace
) -> Iterator[EngineSession]:
    """Load a package in the form that scores texts fast.

    Args:
        package: The package.
        documents: The ids of each document, which the model must know.
        args: The command's arguments.

    Yields:
        A session.

    Raises:
        ModelError: The model cannot be run, or an id is not below V.
    """

    def log(message: str) -> None:
        print(f"{package.model}: {message}", file=sys.stderr)

    options = replace(options_from(args, log), all_logits=True)
    with (
        contextlib.closing(package.engine(options)) as engine,
        contextlib.closing(engine.open_session()) as session,
    ):
        if (highest := max(map(max, documents))) >= engine.vocab_size:
            raise ModelError(
                f"{package.model} has token ids below {engine.vocab_size}, the dataset has {highest}: use "
                f"ids of this model's tokenizer"
            )
        if not engine.gives_all_logits:
            log("its prefills give no logits: tokens are read one by one, which takes longer")
        yield session


@contextlib.contextmanager
def _names(package: Package) -> Iterator[None]:
    """Let ModelErrors begin with the name of the model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{package.model}: {error}") from error


def summary(
    args: argparse.Namespace, documents: Sequence[Sequence[int]], nlls: Sequence[Sequence[np.ndarray]]
) -> str:
    """Summarize the dataset in a line.

    Args:
        args: The command's arguments.
        documents: The ids of each document.
        nlls: The result of `evaluate` for each package.

    Returns:
        `held_out.txt: 64 documents, 5,432 tokens`, and the number of documents that were cut.
    """
    predicted = [min(map(len, of_document)) for of_document in zip(*nlls, strict=True)]
    cut = sum(count < len(ids) - 1 for count, ids in zip(predicted, documents, strict=True))
    name, tokens = args.text or args.ids, counted(sum(predicted), "token")
    line = f"{name}: {counted(len(documents), 'document')}, {tokens}"
    return line + (f"; {cut} cut to the {max(predicted)} tokens that can be predicted" if cut else "")
