"""Command-line flags of a chat: the system message, and the variables of its template."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from o2o.cli.arguments import utf8_text
from o2o.errors import UsageError


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a chat to a parser.

    Args:
        parser: The parser of a command that chats.
    """
    add = parser.add_argument_group("chat").add_argument
    add(
        "--chat",
        action="store_true",
        help="chat by the checkpoint's template: read one message from each line of stdin, or from --prompt",
    )
    add("--system", metavar="TEXT", type=utf8_text, help="system message")
    add(
        "--tools",
        metavar="FILE",
        type=_objects,
        help="JSON file with a list of tools that the model may call, each a JSON schema",
    )
    add(
        "--documents",
        metavar="FILE",
        type=_objects,
        help='JSON file with a list of documents, each an object with "title" and "text"',
    )
    add(
        "--template",
        metavar="NAME",
        help="chat template, if the checkpoint has several (default: tool_use with --tools, else default)",
    )
    add(
        "--template-arg",
        metavar="NAME=JSON",
        type=_variable,
        action="append",
        default=[],
        help="variable of the template, such as enable_thinking=false; text that is not JSON is a string; "
        "repeatable",
    )


def chat_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Package.chat` of a command line.

    Args:
        args: Parsed flags of `add_chat_flags`.

    Returns:
        The arguments.

    Raises:
        UsageError: A flag needs `--chat`.
    """
    values = {name: getattr(args, name) for name in ("system", "tools", "documents", "template")}
    flags = {
        **{f"--{name}": value for name, value in values.items()},
        "--template-arg": args.template_arg or None,
    }
    if not args.chat and (needless := [flag for flag, value in flags.items() if value is not None]):
        raise UsageError(f"{needless[0]} needs --chat")
    return {**values, "template_args": dict(args.template_arg)}


def _objects(text: str) -> list[dict[str, Any]]:
    path = Path(text)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from None
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON list of objects")
    return content


def _variable(text: str) -> tuple[str, Any]:
    name, separator, value = utf8_text(text).partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
