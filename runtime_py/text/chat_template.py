"""Chat templates: they turn the messages of a conversation into a prompt.

The language is Jinja, with the extensions of transformers' `apply_chat_template`. Templates come with
checkpoints, which are untrusted, so they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, Required, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from o2o.errors import ModelError, UsageError
from runtime_py.text.files import Place
from runtime_py.text.json_file import TEXT, read_json
from runtime_py.text.tokenizer.files import read_tokenizer_config

FILE = "chat_template.jinja"
FOLDER = "additional_chat_templates"
CONFIG = "tokenizer_config.json"
PROCESSOR_FILE = "chat_template.json"
DEFAULT, TOOL_USE = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Message(TypedDict, total=False):
    """One message of a conversation. Other keys reach the template, too.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: Its text, or a list of parts such as `{"type": "text", "text": ...}`.
        reasoning_content: The reasoning before the text.
        tool_calls: The calls that the assistant makes.
        name: The tool that answers.
        tool_call_id: The call that a tool answers.
    """

    role: Required[str]
    content: str | list[dict[str, Any]] | None
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    name: str
    tool_call_id: str


class ChatTemplate:
    """The chat templates of a checkpoint, with the variables of one conversation."""

    def __init__(
        self,
        directory: Place,
        special_tokens: Mapping[str, str],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Load a template. Of several, `tool_use` is selected for tools, otherwise `default`.

        Args:
            directory: The folder of the checkpoint's tokenizer.
            special_tokens: Text by role, such as `bos_token`.
            tools: JSON schemas of the tools that the model may call.
            documents: Documents with a `title` and a `text`.
            template: The name of the template, if the checkpoint has several.
            template_args: Other variables of the template, such as `enable_thinking`. They override special
                tokens.
            sources: The result of `template_sources`; None to read the files.

        Raises:
            ModelError: There is no template, or it is not Jinja.
            UsageError: No template has the name `template`, or the variables are not JSON.
        """
        sources = template_sources(directory) if sources is None else sources
        source = _select(directory, sources, template, tools is not None)
        self._directory = directory
        variables = {"tools": tools, "documents": documents}
        for name, value in variables.items():
            if value is not None and not _is_list_of_objects(value):
                raise UsageError(f"{name} must be a list of JSON objects")
        self._variables = {**special_tokens, **_template_args(template_args), **_json(variables)}
        try:
            self._template = _compiled(source)
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
        if not _is_list_of_objects(messages):
            raise UsageError("the messages must be a list of JSON objects")
        seen = [_with_reasoning(message) for message in _json(messages)]
        try:
            return self._template.render({"add_generation_prompt": True, **self._variables, "messages": seen})
        except MemoryError:
            raise
        except Exception as error:  # templates are programs of the checkpoint
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"the chat template of {self._directory} refuses the messages: {reason}"
            ) from error


def template_sources(directory: Place) -> dict[str, str]:
    """Read the templates of a checkpoint. Files of their own replace those in `tokenizer_config.json`.

    Args:
        directory: The folder of the checkpoint's tokenizer.

    Returns:
        The templates by name; empty if there are none.

    Raises:
        ModelError: A file is damaged.
    """
    files: dict[str, Place] = {DEFAULT: directory / FILE}
    others: Iterable[Place] = (directory / FOLDER).glob("*.jinja")
    files |= {path.stem: path for path in sorted(others, key=str)}
    if sources := {name: _text(path) for name, path in files.items() if path.exists()}:
        return sources
    template = read_tokenizer_config(directory).get("chat_template")
    if template is None:
        template = read_json(directory / PROCESSOR_FILE, {"chat_template": TEXT}).get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        return template
    return {} if template is None else {DEFAULT: template}


def _text(path: Place) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder, not a chat template") from error


def _select(directory: Place, sources: Mapping[str, str], name: str | None, has_tools: bool) -> str:
    if not sources:
        raise ModelError(
            f"{directory} has no chat template ({FILE}, or chat_template in {CONFIG}): the model was not "
            f"trained to chat: continue a prompt with `o2o run`"
        )
    names = ", ".join(sorted(sources))
    if name is not None:
        if name not in sources:
            raise UsageError(f"{directory} has no chat template {name!r}: it has {names}")
        return sources[name]
    for candidate in ([TOOL_USE] if has_tools else []) + [DEFAULT]:
        if candidate in sources:
            return sources[candidate]
    raise UsageError(f"{directory} has no default chat template: select one with --template: {names}")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def _template_args(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables as JSON. Raises UsageError for those that have arguments of their own."""
    variables = {} if variables is None else variables
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise UsageError("template_args must be an object with the names of variables")
    if reserved := sorted(variables.keys() & {"messages", "tools", "documents"}):
        raise UsageError(f"template_args cannot set {reserved[0]}: it has an argument of its own")
    return dict(_json(variables))


def _json(value: Any) -> Any:
    """Return a copy that has JSON types only: methods of other objects may be unsafe in a template."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a variable of the chat template is not JSON: {error}") from error


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys that are null. Give the reasoning the names that templates use."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING if name in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}


@lru_cache(maxsize=16)  # compiling takes longer than rendering
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training. Here it only is a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """The global `dict`, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """The global `namespace`. Names that begin with an underscore are refused, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # `self` may be an attribute of the namespace
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _to_json(
    x: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like json.dumps. Jinja's own filter escapes HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
