"""Check and measure structured output, without a model.

    python bench/grammar.py TOKENIZER_FOLDER [--schemas 500]

Each of `--schemas` random JSON schemas gets a text of random tokens that its grammar allows. Each text that
ends is validated by `jsonschema`. `mask` is the time of the logits processor for a token. The first masks of
a grammar take longer; later ones use what was computed. The exit code is 1 if a text does not match.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder
    from o2o.cli import interrupt

    interrupt.exit_on_interrupt("grammar.py")

import argparse
import json
import random
import statistics
import string
import time
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from runtime_py.generation.grammar import Grammar
from runtime_py.generation.logits_processors.grammar import GrammarCompiler
from runtime_py.text.detokenizer import Detokenizer
from runtime_py.text.tokenizer import Tokenizer, load_tokenizer

PROMPT = (1, 2)
LONGEST = 300
"""Tokens after which a text is given up."""


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    """Make a schema of the supported keywords that some value matches.

    Args:
        rng: Random numbers.
        depth: How deep arrays and objects may be nested.

    Returns:
        The schema.
    """
    word = "".join(rng.choices(string.ascii_letters + " _-é", k=rng.randrange(1, 7)))
    low = rng.randrange(-500, 500)
    scalars: list[Any] = [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "integer", "minimum": low, "maximum": low + rng.randrange(2000)},
        {"type": "number", "exclusiveMinimum": low, "maximum": low + 1 + rng.random()},
        {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 12)},
        {"type": "string", "pattern": rng.choice(["^[a-c]{2,5}$", "x+y?", "^[0-9]{4}-[0-9]{2}$"])},
        {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])},
        {"enum": [word, low, None, rng.random() < 0.5]},
        {"const": {word: [low]}},
    ]
    if depth == 0:
        return rng.choice(scalars)

    def inner() -> Any:
        return random_schema(rng, depth - 1)

    names = [f"{word}{index}" for index in range(rng.randrange(4))]
    least = rng.randrange(3)
    nested: list[Any] = [
        {"type": "array", "items": inner(), "minItems": least, "maxItems": least + rng.randrange(3)},
        {"type": "array", "prefixItems": [inner(), inner()], "items": False},
        {
            "type": "object",
            "properties": {name: inner() for name in names},
            "required": names[::2],
            "additionalProperties": False,
        },
        {"anyOf": [inner(), inner()]},
    ]
    return rng.choice([*scalars[::3], *nested])


def draw(
    tokenizer: Tokenizer, compiler: GrammarCompiler, grammar: Grammar, eos: int, seed: int
) -> tuple[str | None, list[float]]:
    """Draw a text of random tokens.

    Args:
        tokenizer: The tokenizer.
        compiler: Compiles for it.
        grammar: The form of the text.
        eos: The end of sequence.
        seed: The seed of the random numbers.

    Returns:
        The text, or None if it did not end; and the seconds of each mask.
    """
    processor, rng = compiler.processor(grammar), np.random.default_rng(seed)
    noise = rng.standard_normal(tokenizer.num_ids + LONGEST).astype(np.float32)
    ending = {eos, *(tokenizer.encode(letter, special=False)[-1] for letter in '}]"')}
    ids, text, seconds = [*PROMPT], "", []
    detokenizer = Detokenizer(tokenizer, continues=True)
    for step in range(LONGEST):
        logits = noise[step : step + tokenizer.num_ids].copy()
        logits[list(ending)] += 4  # texts end
        begin = time.perf_counter()
        processed = processor(ids, logits)
        seconds.append(time.perf_counter() - begin)
        token = int(processed.argmax())
        if token == eos:
            return text + detokenizer.flush(), seconds
        ids.append(token)
        text += detokenizer.push(token)
    return None, seconds


def execute(args: argparse.Namespace) -> int:
    """Run the checks.

    Args:
        args: The parsed command line.

    Returns:
        The exit code.
    """
    tokenizer = load_tokenizer(args.folder)
    eos = tokenizer.token_id(tokenizer.special_tokens.get("eos_token", "")) or 0
    begin = time.perf_counter()
    compiler = GrammarCompiler(tokenizer, [eos])
    print(f"{tokenizer.num_ids} pieces; vocabulary read in {time.perf_counter() - begin:.2f} s")
    rng = random.Random(args.seed)
    ended = wrong = 0
    seconds: list[float] = []
    for number in range(args.schemas):
        schema = random_schema(rng)
        if number % 5 == 0:
            schema = {"$defs": {"a": schema}, "type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 2}
        text, times = draw(tokenizer, compiler, Grammar.json_schema(schema), eos, number)
        seconds += times
        if text is None:
            continue
        ended += 1
        try:
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            wrong += 1
            print(f"WRONG {json.dumps(schema)}: {text!r}: {error}")
    milliseconds = sorted(each * 1000 for each in seconds)
    print(
        f"{args.schemas} schemas: {ended} texts ended, {wrong} do not match; {len(seconds)} tokens; mask "
        f"{statistics.median(milliseconds):.3f} ms median, {statistics.mean(milliseconds):.3f} mean, "
        f"{milliseconds[int(len(milliseconds) * 0.99)]:.3f} at 99 %"
    )
    return int(wrong > 0)


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(prog="python bench/grammar.py", description=__doc__)
    parser.add_argument("folder", metavar="TOKENIZER_FOLDER", type=Path)
    parser.add_argument("--schemas", type=positive_int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return run("grammar.py", lambda: execute(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
