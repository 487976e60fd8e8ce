"""The section `LlmMetadataProto`: tokens that start and stop a text, chat template, sampler, context.

The messages are declared here, field by field, as protobuf needs them to read and write. Fields that are not
declared are ignored.

Source: `llm_metadata.proto`, `sampler_params.proto` and `token.proto` of LiteRT-LM 0.18.1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from o2o.errors import ModelError

_PACKAGE = "litert.lm.proto"
_INT, _FLOAT, _BOOL, _TEXT = "TYPE_INT32", "TYPE_FLOAT", "TYPE_BOOL", "TYPE_STRING"
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str] | tuple[int, str, str]]] = {
    "TokenIds": {"ids": (1, _INT, "repeated")},
    "TokenUnion": {"token_ids": (1, "TokenIds"), "token_str": (2, _TEXT)},
    "PromptAffixes": {"prefix": (1, _TEXT), "suffix": (2, _TEXT)},
    "PromptTemplates": {
        "user": (1, "PromptAffixes"),
        "model": (2, "PromptAffixes"),
        "system": (3, "PromptAffixes"),
    },
    "SamplerParameters": {
        "type": (1, _INT),  # an enum, which is stored as an integer
        "k": (2, _INT),
        "p": (3, _FLOAT),
        "temperature": (4, _FLOAT),
        "seed": (5, _INT),
    },
    "GenericModel": {},
    "LlmModelType": {"generic_model": (1, "GenericModel")},
    "LlmMetadata": {
        "start_token": (1, "TokenUnion"),
        "stop_tokens": (2, "TokenUnion", "repeated"),
        "prompt_templates": (3, "PromptTemplates"),
        "sampler_params": (4, "SamplerParameters"),
        "max_num_tokens": (5, _INT),
        "llm_model_type": (6, "LlmModelType"),
        "jinja_prompt_template": (7, _TEXT),
        "suppress_tokens": (9, "TokenIds"),
        "supports_thinking": (11, _BOOL),
        "supports_function_calling": (12, _BOOL),
        "pad_token": (13, "TokenUnion"),
    },
}
"""Fields by message: number, type, and whether the field is repeated."""

TOP_K, TOP_P, GREEDY = 1, 2, 3
"""Values of `SamplerParameters.type`."""


@dataclass(frozen=True)
class Sampler:
    """How tokens are chosen: by default the most likely one.

    Attributes:
        kind: `TOP_K`, `TOP_P` or `GREEDY`.
        k: How many of the most likely tokens count; 0 for all.
        p: The share of the probability that counts.
        temperature: Divides the logits.
    """

    kind: int = TOP_P  # LiteRT-LM 0.18 has no code for GREEDY, and none for TOP_K on the CPU
    k: int = 1
    p: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LlmMetadata:
    """What LiteRT-LM must know besides the model and the tokenizer.

    Attributes:
        start: The ids before a text, or their text; None if a text begins without.
        stops: Sequences of ids, or texts, that end an answer.
        max_tokens: S, tokens of context; 0 if unknown.
        template: The chat template in Jinja; "" for none.
        affixes: Text before and after a message, by role: the form before Jinja.
        sampler: How tokens are chosen; None to leave it to LiteRT-LM.
        pad: The id that fills up a prompt.
        suppressed: Ids that are never chosen.
        supports_thinking: Whether the template has a variable for reasoning.
        supports_tools: Whether the template takes tools.
    """

    start: tuple[int, ...] | str | None = None
    stops: tuple[tuple[int, ...] | str, ...] = ()
    max_tokens: int = 0
    template: str = ""
    affixes: Mapping[str, tuple[str, str]] | None = None
    sampler: Sampler | None = None
    pad: int | None = None
    suppressed: tuple[int, ...] = ()
    supports_thinking: bool = False
    supports_tools: bool = False

    def packed(self) -> bytes:
        """Return the stored form.

        Returns:
            The bytes of the section.
        """
        message = _message("LlmMetadata")()
        if self.start is not None:
            _set_token(message.start_token, self.start)
        for stop in self.stops:
            _set_token(message.stop_tokens.add(), stop)
        if self.sampler is not None:
            parameters = message.sampler_params
            parameters.type, parameters.k = self.sampler.kind, self.sampler.k
            parameters.p, parameters.temperature = self.sampler.p, self.sampler.temperature
        message.max_num_tokens = self.max_tokens
        message.llm_model_type.generic_model.SetInParent()
        message.jinja_prompt_template = self.template
        if self.suppressed:
            message.suppress_tokens.ids.extend(self.suppressed)
        message.supports_thinking = self.supports_thinking
        message.supports_function_calling = self.supports_tools
        if self.pad is not None:
            _set_token(message.pad_token, (self.pad,))
        return bytes(message.SerializeToString(deterministic=True))

    @classmethod
    def parse(cls, data: bytes) -> LlmMetadata:
        """Read the section.

        Args:
            data: Its bytes.

        Returns:
            The metadata.

        Raises:
            ModelError: The bytes are damaged.
        """
        message = _message("LlmMetadata")()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise ModelError("its LlmMetadata is damaged") from error
        sampler = None
        if message.HasField("sampler_params"):
            stored = message.sampler_params
            sampler = Sampler(stored.type, stored.k, stored.p, stored.temperature)
        affixes = None
        if message.HasField("prompt_templates"):
            roles = {"user": "user", "assistant": "model", "system": "system"}
            stored = message.prompt_templates
            affixes = {
                role: (getattr(stored, name).prefix, getattr(stored, name).suffix)
                for role, name in roles.items()
            }
        pad = _token(message.pad_token)
        return cls(
            _token(message.start_token),
            tuple(stop for stop in map(_token, message.stop_tokens) if stop is not None),
            message.max_num_tokens,
            message.jinja_prompt_template,
            affixes,
            sampler,
            pad[0] if isinstance(pad, tuple) and pad else None,
            tuple(message.suppress_tokens.ids),
            message.supports_thinking,
            message.supports_function_calling,
        )


def _set_token(union: Any, token: tuple[int, ...] | str) -> None:
    if isinstance(token, str):
        union.token_str = token
    else:
        union.token_ids.ids.extend(token)


def _token(union: Any) -> tuple[int, ...] | str | None:
    """The ids, or the text; None if neither is set."""
    if union.HasField("token_str"):
        return str(union.token_str)
    return tuple(union.token_ids.ids) or None


@functools.cache
def _message(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    """The messages, in a pool of their own: LiteRT-LM's own Python package declares them too."""
    file = descriptor_pb2.FileDescriptorProto(
        name="o2o_llm_metadata.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for key, (number, kind, *repeated) in fields.items():
            field = message.field.add(name=key, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(field, kind)
        if name == "TokenUnion":  # one of both
            message.oneof_decl.add(name="token")
            for field in message.field:
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
