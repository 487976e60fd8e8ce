"""`resize.tokens.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o2o.cli.arguments import number_list
from o2o.cli.text import counted, listed
from o2o.contract import role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.model import Model, Signature
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.resize_tokens import TokenResizer, tokens_of

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class ResizeTokens(Filter):
    """Let a prefill read another number of tokens at a time, also one, as decode does.

        prefill_128: ids [1,128] -- layers -- logits [1,128,V]
                                                     =>    --tokens 64,128,1
        prefill_64:  ids [1,64]  -- layers -- logits [1,64,V]
        prefill_128: ids [1,128] -- layers -- logits [1,128,V]
        decode:      ids [1,1]   -- layers -- logits [1,1,V]

    One signature is replaced by one for each number, over the same weights. The token axis is followed from
    the token ids through the graph. Shapes, masks and tables with one row for each token change.
    The results of each token stay the same. The filter proves this: no operator but attention mixes tokens,
    and no query sees keys of later tokens, at any position.
    With --check both run. The signature of fewer tokens reads the text in chunks, and all rows must be equal.
    Refused: an operator that mixes tokens, and a mask that is not causal. For more tokens than before: a
    graph without KV caches, and constants that do not show how they continue.
    """

    name = "resize.tokens.py"
    purpose = "Inputs and outputs"
    usage_example = "resize.tokens.py --tokens 64,128,1 < prefill_128.circle > model.circle"
    check_help = "run the model before and after, and compare the results of each token"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--tokens",
            metavar="A,B",
            type=number_list,
            required=True,
            help="how many tokens a signature reads; one signature for each number",
        )
        parser.add_argument(
            "--signature",
            metavar="NAME",
            help="the signature to replace (default: the one that reads the most tokens)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if not args.tokens or min(args.tokens) < 1:
            raise UsageError("--tokens: give numbers from 1 on, such as 64,128")
        if len(set(args.tokens)) < len(args.tokens):
            raise UsageError(f"--tokens {','.join(map(str, args.tokens))}: give each number once")

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        source = _source(model, args.signature)
        names = _names(model, source, args.tokens)
        others = [signature for signature in model.signatures if signature is not source]
        place = model.signatures.index(source)
        try:
            resizer = TokenResizer(source)
            resized = [
                source if tokens == resizer.tokens else resizer.add(model, tokens, name)
                for tokens, name in zip(args.tokens, names, strict=True)
            ]
        except MatchFailure as failure:
            raise ModelError(
                f"{source.name} cannot be proven to compute the same with another number of tokens: {failure}"
            ) from None
        model.signatures[:] = [*others[:place], *resized, *others[place:]]
        used = [signature.graph for signature in model.signatures]
        if source not in resized and not any(graph is source.graph for graph in used):
            model.graphs.remove(source.graph)
        sizes = [f"{name} of {tokens}" for name, tokens in zip(names, args.tokens, strict=True)]
        self.log(f"{source.name} of {counted(resizer.tokens, 'token')} became {listed(sizes)}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        raise NotImplementedError  # `check` compares rows

    def check(self, models: Sequence[Model], result: Model, args: argparse.Namespace) -> str:
        from o2o.check.resized_tokens import check_resized

        (model,) = models
        source = _source(model, args.signature)
        names = _names(model, source, args.tokens)
        return check_resized(model, result, dict.fromkeys(names, source.name), self.tolerance(args))


def _source(model: Model, name: str | None) -> Signature:
    """The signature to replace. Raises UsageError or ModelError."""
    for signature in model.signatures:
        if signature.name == name:
            return signature
    if name is not None:
        there = listed([signature.name for signature in model.signatures]) or "none"
        raise UsageError(f"there is no signature {name!r}; there are: {there}")
    best = max(model.signatures, key=tokens_of, default=None)
    if best is None or tokens_of(best) < 2:
        raise ModelError(
            "no signature reads 2 or more token ids with the role tokens in the o2o.contract: "
            "sign.contract.py finds roles"
        )
    return best


def _names(model: Model, source: Signature, tokens: Sequence[int]) -> list[str]:
    """The name of each new signature: `prefill_64` becomes `prefill_8`, and `decode` for one token."""
    own = tokens_of(source)
    taken = {signature.name for signature in model.signatures if signature is not source}
    stem = source.name.removesuffix(f"_{own}")
    has_caches = any((role := role_of(value)) and role.is_cache for value in source.inputs.values())
    names = []
    for number in tokens:
        name = source.name if number == own else f"{stem}_{number}"
        if number == 1 and has_caches and "decode" not in taken:
            name = "decode"
        elif len(tokens) == 1 and stem == source.name:
            name = stem
        if name in taken:
            raise UsageError(f"--tokens {number}: the model has a signature {name} already")
        taken.add(name)
        names.append(name)
    return names


main = ResizeTokens.main
