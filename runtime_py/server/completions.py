"""`/v1/completions`: continue texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.generation.generate import Token
from runtime_py.server import schemas
from runtime_py.server.errors import ApiError
from runtime_py.server.formats import grammar_of
from runtime_py.server.log_probabilities import PendingTokens, completion_entries
from runtime_py.server.models import ServedModel
from runtime_py.server.responses import REASONS, Completion
from runtime_py.server.schemas import CompletionRequest, OpenAIFields, parse
from runtime_py.server.service import Service, service_of
from runtime_py.server.texts import (
    Ended,
    Event,
    Piece,
    Prompt,
    Started,
    Texts,
    encoded,
    generate_texts,
    sampling_of,
)
from runtime_py.server.thread_stream import Cancelled


async def completions(request: Request) -> Response:
    """Handle a request.

    Args:
        request: A `CompletionRequest`.

    Returns:
        The texts, or a stream of them.

    Raises:
        ApiError: The request is wrong, or the server is busy.
    """
    service = service_of(request)
    fields = parse(CompletionRequest, await request.body())
    model = service.models.find(fields.model)
    _check(fields)
    texts = common_texts(service, fields, fields.max_tokens)
    texts = replace(
        texts,
        prompts=lambda _: prompts_of(fields.prompt),
        log_probabilities=fields.logprobs,
        continues=True,
        grammar=grammar_of(fields, fields.response_format, service.settings.max_grammar),
    )
    make = partial(_score if fields.max_tokens == 0 else _generate, model, texts, fields)
    writer = _Writer(model, fields, texts.choices)
    return await service.respond(request, model, make, writer.push, writer.completion, fields, _joined)


def common_texts(service: Service, fields: OpenAIFields, max_tokens: int | None) -> Texts:
    """Return the texts that the common fields describe.

    Args:
        service: The server.
        fields: The fields of a request.
        max_tokens: The largest number of new tokens.

    Returns:
        The texts, without prompts.
    """
    biases = {int(token): bias for token, bias in (fields.logit_bias or {}).items()}
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return Texts(
        prompts=lambda _: (),
        choices=fields.n or 1,
        sampling=sampling_of(fields, biases),
        seed=service.settings.seed if fields.seed is None else fields.seed,
        max_tokens=service.limited(max_tokens),
        stop=tuple(stop),
        ignore_eos=bool(fields.ignore_eos),
        timeout=service.settings.timeout,
    )


def prompts_of(prompt: schemas.Prompt | schemas.PromptText | list[Any]) -> list[Prompt]:
    """Return the prompts of a request.

    Args:
        prompt: See `runtime_py.server.schemas.Prompt`.

    Returns:
        The prompts.

    Raises:
        ApiError: There are none.
    """
    if isinstance(prompt, str | schemas.PromptText):
        return [_plain(prompt)]
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if any(isinstance(part, int) for part in prompt):
        return [cast(Prompt, prompt)]
    return [_plain(part) for part in prompt]


def _plain(prompt: Any) -> Prompt:
    return prompt.prompt_string if isinstance(prompt, schemas.PromptText) else prompt


def _check(fields: CompletionRequest) -> None:
    if fields.suffix:
        raise ApiError(400, "suffix is not supported: the models continue a prompt", param="suffix")
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise ApiError(400, "best_of is not supported: it must be n", param="best_of")
    if fields.max_tokens == 0 and not fields.echo:
        raise ApiError(400, "max_tokens is 0: this needs echo", param="max_tokens")
    prompts_of(fields.prompt)


def _generate(
    model: ServedModel, texts: Texts, fields: CompletionRequest, cancelled: Cancelled
) -> Iterator[Event | list[Token]]:
    """The events. With `echo` and `logprobs`, the tokens of the prompt follow the start of each text."""
    for each in generate_texts(model, texts, cancelled):
        yield each
        if fields.echo and fields.logprobs is not None and isinstance(each, Started):
            yield model.package.score(each.ids, fields.logprobs)


def _score(
    model: ServedModel, texts: Texts, fields: CompletionRequest, cancelled: Cancelled
) -> Iterator[Event | list[Token]]:
    """The prompts alone, for `max_tokens` 0."""
    numbered = [prompt for prompt in texts.prompts(model) for _ in range(texts.choices)]
    for index, prompt in enumerate(numbered):
        if cancelled:
            return
        ids = encoded(model, prompt)
        yield Started(index, prompt, ids, None)
        if fields.logprobs is not None:
            yield model.package.score(ids, fields.logprobs)
        yield Ended(index, "length", 0, 0, 0.0, 0.0)


class _Writer:
    """Writes the events as choices: parts of a stream, which together are the whole response."""

    def __init__(self, model: ServedModel, fields: CompletionRequest, choices: int) -> None:
        self.completion = Completion("text_completion", "cmpl", model)
        self._model = model
        self._echo = bool(fields.echo)
        self._logs = fields.logprobs is not None
        self._choices = choices
        self._pending = PendingTokens(model.token_bytes)
        self._offset = self._index = 0

    def push(self, item: Event | list[Token]) -> list[dict[str, Any]]:
        """Add an event. Return the choices that it adds."""
        match item:
            case Started():
                self.completion.start(item, self._choices)
                self._pending = PendingTokens(self._model.token_bytes)
                self._index, self._offset = item.index, 0
                text = self._text(item) if self._echo else ""
                return [self._choice(text)] if text else []
            case Piece():
                self.completion.num_new += 1
                shown = self._pending.push(item.token) if self._logs else []
                return [self._choice(item.token.text, shown)] if item.token.text or shown else []
            case Ended():
                self.completion.ended.append(item)
                return [{**self._choice(""), "finish_reason": REASONS[item.finish]}]
        return [self._choice("", item)]

    def _text(self, started: Started) -> str:
        if isinstance(started.prompt, str):
            return started.prompt
        return self._model.package.tokenizer.decode(started.ids)

    def _choice(self, text: str, tokens: Sequence[Token] = ()) -> dict[str, Any]:
        entries = None
        if tokens:
            entries = completion_entries(tokens, self._model.token_bytes, self._offset)
            self._offset += sum(map(len, entries["tokens"]))
        return {"index": self._index, "text": text, "logprobs": entries, "finish_reason": None}


def _joined(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of the whole response."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        choice = choices.setdefault(part["index"], part)
        if choice is part:
            continue
        choice["text"] += part["text"]
        choice["finish_reason"] = part["finish_reason"]
        if choice["logprobs"] is None:
            choice["logprobs"] = part["logprobs"]
        elif part["logprobs"] is not None:
            for name, values in part["logprobs"].items():
                choice["logprobs"][name] += values
    return list(choices.values())
