"""Command-line arguments: the parser of every command, and argument types (for `add_argument(type=...)`)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from o2o.cli.program import program_name
from o2o.cli.text import one_line
from o2o.errors import UsageError

_LONGEST_RANGE = 1_000_000


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps text, except text that has lines already: docstrings and examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.splitlines(keepends=True))


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors. Its flags have two spellings and take lists with commas.

    `--keep_by_name` and `--keep-by-name` are the same flag; help shows the spelling that was declared. A flag
    that takes several values takes them as `a b`, `a,b`, or a mixture.
    """

    def __init__(
        self, *args: Any, prog: str | None = None, examples: Sequence[str] = (), **kwargs: Any
    ) -> None:
        """See `argparse`.

        Args:
            prog: The command's name; see `o2o.cli.program`.
            examples: Command lines, which the help shows at its end.
            kwargs: See `argparse`.
        """
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(prog and program_name(prog), **kwargs)
        self.set_examples(examples)
        self._unknown: list[str] = []
        self.register("type", int, _integer)  # with messages in place of "invalid int value"
        self.register("type", float, _number)

    def set_examples(self, examples: Sequence[str]) -> None:
        """Set the examples, which the help shows at its end.

        Args:
            examples: Command lines.
        """
        self.examples = tuple(examples)
        if examples:
            self.epilog = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples])

    def error(self, message: str) -> NoReturn:
        """Report wrong usage. An unknown flag comes first: its value would pass for another argument.

        Args:
            message: What is wrong.

        Raises:
            UsageError: Always.
        """
        if self._unknown and message.startswith("the following arguments are required"):
            message = f"unrecognized arguments: {' '.join(self._unknown)}"
        if self._unknown and message.startswith("unrecognized"):
            message += suggestion(self._unknown[0], self._option_string_actions)
        raise UsageError(f"{one_line(message)} (--help explains)")

    def canonical(self, argv: Sequence[str]) -> list[str]:
        """Return arguments with every flag in its declared spelling and every list as separate values.

        Args:
            argv: The arguments as they were typed.

        Returns:
            Arguments that mean the same.
        """
        declared = {_key(flag): flag for flag in self._option_string_actions if flag.startswith("--")}
        self._unknown = []
        arguments: list[str] = []
        in_list = False
        for index, argument in enumerate(argv):
            if argument == "--":
                return [*arguments, *argv[index:]]
            flag, separator, value = argument.partition("=")
            flag = declared.get(_key(flag), flag)
            action = self._option_string_actions.get(flag)
            if argument.startswith("-"):
                in_list = action is not None and action.nargs in ("+", "*")
            if action is None:
                if argument.startswith("--") and not self._abbreviates(flag):
                    self._unknown.append(flag)
                arguments += argument.split(",") if in_list else [argument]
            elif in_list and separator:
                arguments += [flag, *value.split(",")]
            else:
                arguments.append(flag + separator + value)
        return arguments

    def _abbreviates(self, flag: str) -> bool:
        return self.allow_abbrev and any(each.startswith(flag) for each in self._option_string_actions)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(self.canonical(sys.argv[1:] if args is None else args), namespace)


def suggestion(typed: str, known: Iterable[str]) -> str:
    """Suggest the nearest known word.

    Args:
        typed: An unknown word.
        known: The known words.

    Returns:
        `: did you mean X?`, or nothing if no word is near.
    """
    import difflib  # only for this message: importing it takes milliseconds

    nearest = difflib.get_close_matches(typed, list(known), 1, cutoff=0.6)
    return f": did you mean {nearest[0]}?" if nearest else ""


def _key(flag: str) -> str:
    return flag.replace("-", "_")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def positive_int(text: str) -> int:
    """Parse an integer of at least 1.

    Args:
        text: The argument.

    Returns:
        The integer.

    Raises:
        ArgumentTypeError: `text` is anything else.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return number


def utf8_text(text: str) -> str:
    """Check an argument.

    Args:
        text: The argument.

    Returns:
        The same text.

    Raises:
        ArgumentTypeError: It is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return text


def number_list(text: str) -> list[int]:
    """Parse a list of integers.

    Args:
        text: `64,128,256`. Empty text is an empty list.

    Returns:
        The integers in their order.

    Raises:
        ArgumentTypeError: A part is no integer, or empty.
    """
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 64,128,256") from None


def id_list(text: str) -> list[int]:
    """Parse a list of integers and ranges.

    Args:
        text: `0,2-4` is [0, 2, 3, 4].

    Returns:
        The integers in their order.

    Raises:
        ArgumentTypeError: A part is neither a number nor an ascending range.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a number nor a range; write 0,2-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"the range {part.strip()} is descending")
        if last - first > _LONGEST_RANGE:
            raise argparse.ArgumentTypeError(f"the range {part.strip()} is longer than any graph")
        ids += range(first, last + 1)
    return ids


def name_list(text: str) -> list[str]:
    """Parse a list of names.

    Args:
        text: `a,b`. Spaces around a name are dropped.

    Returns:
        The names in their order.

    Raises:
        ArgumentTypeError: A name is empty.
    """
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write a,b")
    return names


def shape(text: str) -> tuple[int, ...]:
    """Parse a shape.

    Args:
        text: `[1,16,30,4]`.

    Returns:
        The dimensions.

    Raises:
        ArgumentTypeError: `text` has another form.
    """
    if not re.fullmatch(r"\[\s*(\d+\s*(,\s*\d+\s*)*)?\]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as [1,16,30,4]")
    return tuple(int(dim) for dim in re.findall(r"\d+", text))


def add_io(parser: argparse.ArgumentParser) -> None:
    """Declare the argument `input` or `output`.

    Args:
        parser: Takes the argument, as `io`.
    """
    parser.add_argument("io", choices=("input", "output"), help="the side of the graph")


def add_signature(parser: argparse.ArgumentParser) -> None:
    """Declare the flag `--signature`.

    Args:
        parser: Takes the flag.
    """
    parser.add_argument("--signature", metavar="NAME", help="change only the graph of this signature")
