"""Command-line flags that say how a text is generated: its length, the choice of tokens, penalties."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.arguments import number_list, positive_int, utf8_text
from o2o.errors import UsageError

if TYPE_CHECKING:
    from runtime_py.generation.generate import GenerationOptions
    from runtime_py.generation.grammar import Grammar


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser, in groups.

    Args:
        parser: The parser of a command that generates text.
    """
    add = parser.add_argument_group("length, in addition to the end-of-sequence token").add_argument
    add(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        help="default: the limit of generation_config.json, else until the context is full",
    )
    add("--min-new-tokens", metavar="N", type=int, help="no end-of-sequence token before N new tokens")
    add("--stop", metavar="TEXT", type=utf8_text, action="append", default=[], help="stop string; repeatable")
    add(
        "--stop-token",
        metavar="ID,ID",
        type=number_list,
        action="extend",
        default=[],
        help="stop token ids; repeatable",
    )

    add = parser.add_argument_group(
        "choice of tokens (default: as generation_config.json says, else greedy decoding)",
        "A flag replaces one setting of the file. Each flag except --greedy and --temperature 0 turns "
        "sampling on.",
    ).add_argument
    add(
        "--greedy",
        action="store_true",
        help="choose the token with the largest logit; ignore the file and the flags below",
    )
    add("--temperature", metavar="X", type=float, help="divide the logits by X; 0 is the most likely token")
    add("--top-k", metavar="N", type=int, help="sample from the N most likely tokens; 0 is all")
    add(
        "--top-p",
        metavar="X",
        type=float,
        help="sample from the smallest set of most likely tokens with total probability X",
    )
    add("--min-p", metavar="X", type=float, help="drop tokens below X times the highest probability")
    add(
        "--typical-p",
        metavar="X",
        type=float,
        help="sample from the most typical tokens, total probability X",
    )
    add("--seed", metavar="N", type=int, help="seed of the random numbers, to repeat a text")

    add = parser.add_argument_group("penalties and biases").add_argument
    add(
        "--repetition-penalty",
        metavar="X",
        type=float,
        help="penalize tokens of the text, prompt included, by the factor X; 1 is none",
    )
    add(
        "--frequency-penalty",
        metavar="X",
        type=float,
        help="subtract X from the logit of a generated token, for each occurrence",
    )
    add("--presence-penalty", metavar="X", type=float, help="subtract X once, if there is an occurrence")
    add(
        "--no-repeat-ngram-size", metavar="N", type=int, help="no sequence of N tokens occurs twice; 0 is off"
    )
    add(
        "--logit-bias",
        metavar="ID=X,...",
        type=_biases,
        action="extend",
        help="add X to the logit of the token ID; -inf forbids it; repeatable",
    )

    group = parser.add_argument_group("form of the text (needs the extra `grammar`)")
    add = group.add_mutually_exclusive_group().add_argument
    add(
        "--json-schema",
        metavar="FILE|JSON",
        help='generate JSON that matches a schema: a file, or JSON such as \'{"type": "object"}\'',
    )
    add(
        "--regex",
        metavar="PATTERN",
        type=utf8_text,
        help="generate a text that matches the pattern as a whole",
    )
    add("--grammar", metavar="FILE", help="generate a text of a grammar, in the syntax of Lark or GBNF")


def generation_options(args: argparse.Namespace) -> GenerationOptions:
    """Return the options of a command line.

    Args:
        args: The parsed flags.

    Returns:
        The options. Flags that were not given leave the choice to `generation_config.json`.

    Raises:
        UsageError: A number is out of range.
    """
    from runtime_py.generation.sampling import Sampling  # late, so that --help is fast

    flags = vars(args)
    values = {field.name: flags[field.name] for field in fields(Sampling) if field.name in flags}
    if args.logit_bias is not None:
        values["logit_bias"] = dict(args.logit_bias)
    return {
        "max_new_tokens": args.max_new_tokens,
        "min_new_tokens": args.min_new_tokens,
        "stop": args.stop,
        "stop_tokens": args.stop_token,
        "sampling": Sampling(**values),
        "log_probabilities": args.log_probabilities,
        "grammar": _grammar(args),
    }


def _grammar(args: argparse.Namespace) -> Grammar | None:
    from runtime_py.generation.grammar import Grammar

    if args.json_schema is not None:
        inline = args.json_schema.lstrip()[:1] in ("{", "t", "f") and not Path(args.json_schema).exists()
        schema = args.json_schema if inline else _text("--json-schema", args.json_schema)
        return Grammar.json_schema(schema)
    if args.regex is not None:
        return Grammar.regex(args.regex)
    return None if args.grammar is None else Grammar.lark(_text("--grammar", args.grammar))


def _text(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{flag} {path}: the file is not UTF-8") from None


def _biases(text: str) -> list[tuple[int, float]]:
    """The pairs of `ID=X,ID=X`."""
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return [(int(token), float(bias)) for token, _, bias in pairs]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 12=-1.5,7=-inf") from None
