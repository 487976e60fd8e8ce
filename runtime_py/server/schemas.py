"""The fields of requests: their types, for validation and for OpenAPI."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from runtime_py.server.errors import ApiError

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_TOP = 20
"""The largest `top_logprobs`."""
LARGEST_SEED = 2**63 - 1
_SURROGATE = re.compile("[\\ud800-\\udfff]")


def _integer(value: Any) -> Any:
    """The integer that a number such as 5.0 is, in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integer)]
TokenId = Annotated[Integer, Field(ge=0, lt=2**31)]
Count = Annotated[Integer, Field(ge=0, lt=2**31)]


class Fields(BaseModel):
    """Fields of a request. Others are ignored, and named in the header `X-Ignored-Fields`."""

    model_config = ConfigDict(strict=True, extra="allow", populate_by_name=True)

    @property
    def ignored(self) -> list[str]:
        """The names of the fields that have no effect."""
        return sorted(self.model_extra or ())


class StreamOptions(Fields):
    """How a stream is written."""

    include_usage: bool | None = None


class FunctionCall(Fields):
    """A call of a function, by the assistant. `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Fields):
    """A call of a tool."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class ContentPart(Fields):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


class ChatMessage(Fields):
    """A message of a conversation. Further fields reach the chat template."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionDefinition(Fields):
    """A function that the model may call. `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The choice of one tool."""

    type: Literal["function"]
    function: FunctionName


class JsonSchemaFormat(Fields):
    """A JSON schema that the answer must match."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Fields):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    regex: str | None = None
    lark: str | None = None


class SamplingFields(Fields):
    """How tokens are chosen. Fields that are not set have the values of `generation_config.json`."""

    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), le=LARGEST_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    json_schema: dict[str, Any] | bool | None = None
    grammar: str | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string is empty: it would end every text at once")
        return stop


_IdText = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


class OpenAIFields(SamplingFields):
    """The common fields of OpenAI's endpoints."""

    model: str | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: dict[_IdText, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Count | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: bool | None = None


class ChatRequest(OpenAIFields):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None


Prompt = str | list[TokenId | str] | list[str | list[TokenId | str]]
"""A text; token ids and texts in a row; or several of these."""


def _unsupported(value: bool) -> bool:
    if value:
        raise ValueError("it is not supported")
    return value


_Unsupported = Annotated[
    bool, AfterValidator(_unsupported), WithJsonSchema({"type": "boolean", "enum": [False]})
]


class PromptText(Fields):
    """A text, as llama.cpp writes it beside images, which are not supported."""

    prompt_string: str
    multimodal_data: Annotated[list[Any], Field(max_length=0)] | None = None


class NativeRequest(SamplingFields):
    """A request to llama.cpp's `/completion`."""

    prompt: PromptText | str | list[TokenId | str] | list[PromptText | str | list[TokenId | str]]
    n_predict: Annotated[Integer, Field(ge=-2, lt=2**31)] | None = None
    max_tokens: Annotated[Integer, Field(ge=-2, lt=2**31)] | None = None
    model: str | None = None
    logit_bias: dict[str, float | bool] | list[list[Integer | str | float | bool]] | None = None
    n_probs: Annotated[Integer, Field(ge=0, le=1000)] | None = None
    post_sampling_probs: _Unsupported | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    id_slot: Integer | None = None
    timings_per_token: bool | None = None
    t_max_predict_ms: Annotated[Integer, Field(ge=0)] | None = None


class SlotRequest(Fields):
    """A request to `/slots/{id_slot}`."""

    filename: str | None = None
    model: str | None = None


class TokenizeRequest(Fields):
    """A request to `/tokenize`."""

    content: str
    model: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Fields):
    """A request to `/detokenize`."""

    tokens: list[TokenId]
    model: str | None = None


class TemplateRequest(Fields):
    """A request to `/apply-template`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(OpenAIFields):
    """A request to `/v1/completions`."""

    prompt: Prompt
    best_of: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP)] | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


F = TypeVar("F", bound=Fields)


def parse(kind: type[F], body: bytes) -> F:
    """Read the body of a request.

    Args:
        kind: Its fields.
        body: JSON.

    Returns:
        The fields.

    Raises:
        ApiError: The body is not JSON, or a field has a wrong type or is out of range.
    """
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    if b"\\u" in body and _SURROGATE.search(json.dumps(content, ensure_ascii=False)):
        raise ApiError(400, "the body has a lone surrogate, such as \\ud800: it is not Unicode text")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    """The first field that is wrong. A field of several types has an error for each of them."""
    places: dict[tuple[str, ...], list[str]] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        place = tuple(str(part) for part in each["loc"] if not _is_type(str(part)))
        places.setdefault(place, []).append(each["msg"].removeprefix("Value error, "))
    place, messages = max(places.items(), key=lambda item: len(item[0]))  # of the type that fits best
    message = "; or ".join(dict.fromkeys(messages))
    name = ".".join(place) or "the body"
    return ApiError(400, f"{name}: {message}", param=place[0] if place else None)


def _is_type(part: str) -> bool:
    """Whether a part of a place is no field, but a type of a union."""
    return part in ("str", "int", "bool", "float") or "[" in part or "-" in part or part[:1].isupper()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
