"""Chat templates: they turn the messages of a conversation into a prompt.

The language is Jinja, with the extensions of transformers' `apply_chat_template`. Templates come with
checkpoints, which are untrusted, so they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from o2o.errors import ModelError, UsageError
from runtime_py.text.tokenizer import read_json, special_tokens

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: Its text.
    """

    role: str
    content: str


class ChatTemplate:
    """The chat template of a checkpoint."""

    def __init__(self, directory: Path) -> None:
        """Load a template.

        Args:
            directory: The folder of the checkpoint's tokenizer.

        Raises:
            ModelError: There is no template, or it is not Jinja.
        """
        config = read_json(directory / CONFIG)
        source = _source(directory, config)
        self._directory = directory
        self._names = special_tokens(config)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"{directory}: the chat template is not Jinja: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Render a conversation.

        Args:
            messages: The messages so far.

        Returns:
            Their text, and the beginning of the assistant's next message.

        Raises:
            UsageError: The template refuses the messages, for example a system message.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(
                f"the chat template of {self._directory} refuses the messages: {error}"
            ) from error


def _source(directory: Path, config: dict[str, Any]) -> str:
    try:
        return (directory / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ModelError(f"{directory / FILE} is not UTF-8: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, with names
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default")
    if not isinstance(template, str):
        raise ModelError(
            f"{directory} has no chat template ({FILE}, or chat_template in {CONFIG}): the model was not "
            f"trained to chat: use --prompt without --chat"
        )
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training. Here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like json.dumps. Jinja's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
