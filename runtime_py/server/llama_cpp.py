"""llama.cpp's own endpoints: `/completion`, `/props` and `/slots`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.generation.generate import Finish, Token
from runtime_py.server.completions import prompts_of
from runtime_py.server.errors import ApiError
from runtime_py.server.formats import grammar_of
from runtime_py.server.log_probabilities import PendingTokens, chat_entry
from runtime_py.server.models import ServedModel
from runtime_py.server.responses import (
    FINGERPRINT,
    Completion,
    EventStream,
    Json,
    event,
    ignored_header,
    timings,
)
from runtime_py.server.schemas import NativeRequest, parse
from runtime_py.server.service import Service, service_of
from runtime_py.server.texts import Ended, Event, Piece, Started, Texts, generate_texts, sampling_of

_STOP_TYPES: dict[Finish, str] = {"eos": "eos", "stop": "word", "length": "limit", "capacity": "limit"}
_NO_LIMIT = -1


async def completion(request: Request) -> Response:
    """Continue a text.

    Args:
        request: A `NativeRequest`.

    Returns:
        The text, or a stream of it; several texts for several prompts.

    Raises:
        ApiError: The request is wrong, or the server is busy.
    """
    service = service_of(request)
    fields = parse(NativeRequest, await request.body())
    model = service.models.find(fields.model)
    prompts = prompts_of(fields.prompt)
    texts = _texts(service, model, fields)
    writer = _Writer(model, fields, texts)
    run = partial(service.run, model, partial(generate_texts, model, texts))
    headers = ignored_header(fields)
    finish = partial(service.finish, request, model, writer.completion)
    if fields.stream:
        return EventStream(_events(run, writer, finish), headers)
    async with run() as batches:
        async for batch in batches:
            for each in batch:
                writer.push(each)
    finish()
    whole = [_selected(text, fields.response_fields) for text in writer.whole]
    return Json(whole if len(prompts) > 1 else whole[0], headers=headers)


async def props(request: Request) -> Response:
    """Describe a model and the defaults of requests.

    Args:
        request: It may name the model in its query.

    Returns:
        The description.
    """
    service = service_of(request)
    model = service.models.find(request.query_params.get("model"))
    capacity = await service.models.capacity(model)
    package = model.package
    special = package.tokenizer.special_tokens
    sampling = model.config.sampling
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    params = {
        "n_predict": model.config.max_new_tokens or _NO_LIMIT,
        "seed": _NO_LIMIT if service.settings.seed is None else service.settings.seed,
        "temperature": temperature if sampling.draws else 0.0,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "min_p": sampling.min_p or 0.0,
        "repeat_penalty": sampling.repetition_penalty or 1.0,
    }
    return Json(
        {
            "default_generation_settings": {"n_ctx": capacity, "params": params},
            "total_slots": model.admission.slots,
            "model_alias": model.name,
            "model_path": package.model.name,
            "chat_template": model.template_sources.get("default", ""),
            "bos_token": special.get("bos_token", ""),
            "eos_token": special.get("eos_token", ""),
            "modalities": {"vision": False, "audio": False},
            "build_info": FINGERPRINT,
        }
    )


async def slots(request: Request) -> Response:
    """List the slots of a model.

    Args:
        request: It may name the model in its query.

    Returns:
        The slots, those in use first.
    """
    models = service_of(request).models
    model = models.find(request.query_params.get("model"))
    capacity = await models.capacity(model)
    running = model.admission.running
    return Json(
        [
            {"id": number, "n_ctx": capacity, "is_processing": number < running}
            for number in range(model.admission.slots)
        ]
    )


def _texts(service: Service, model: ServedModel, fields: NativeRequest) -> Texts:
    limit = fields.n_predict if fields.n_predict is not None else fields.max_tokens
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    timeout = service.settings.timeout
    if fields.t_max_predict_ms:
        timeout = min(timeout, fields.t_max_predict_ms / 1000)
    return Texts(
        prompts=lambda _: prompts_of(fields.prompt),
        sampling=sampling_of(fields, _biases(model, fields)),
        seed=service.settings.seed if fields.seed is None else None if fields.seed < 0 else fields.seed,
        max_tokens=service.limited(None if limit is None or limit < 0 else max(1, limit)),
        stop=tuple(stop),
        log_probabilities=fields.n_probs or None,
        ignore_eos=bool(fields.ignore_eos),
        continues=True,
        grammar=grammar_of(fields, None, service.settings.max_grammar),
        timeout=timeout,
        slot=None if fields.id_slot is None or fields.id_slot < 0 else fields.id_slot,
    )


def _biases(model: ServedModel, fields: NativeRequest) -> dict[int, float]:
    """The bias of each token id. A text has the bias for each of its tokens; false forbids a token."""
    pairs: list[Any] = fields.logit_bias or []  # type: ignore[assignment]
    if isinstance(fields.logit_bias, dict):
        pairs = [[int(key) if key.isdecimal() else key, bias] for key, bias in fields.logit_bias.items()]
    biases: dict[int, float] = {}
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], int | str) or isinstance(pair[1], str):
            raise ApiError(400, "logit_bias: each element must be [token, bias]", param="logit_bias")
        tokens: list[Any] = [pair[0]]
        if isinstance(pair[0], str):
            tokens = model.package.tokenizer.encode(pair[0], special=False)
        bias = -math.inf if pair[1] is False else float(pair[1])
        biases |= {int(token): bias for token in tokens}
    return biases


class _Writer:
    """Writes the events as llama.cpp's objects."""

    def __init__(self, model: ServedModel, fields: NativeRequest, texts: Texts) -> None:
        self.completion = Completion("text_completion", "cmpl", model)
        self.whole: list[dict[str, Any]] = []
        """The texts that have ended."""
        self._model = model
        self._fields = fields
        self._texts = texts
        self._log = bool(fields.n_probs)
        self._pending = PendingTokens(model.token_bytes)
        self._ids: list[int] = []
        self._new: list[int] = []  # ids that were not sent
        self._content = ""
        self._entries: list[dict[str, Any]] = []
        self._started: Started | None = None

    def push(self, item: Event) -> list[dict[str, Any]]:
        """Add an event. Return the parts of a stream that it adds."""
        match item:
            case Started():
                self.completion.start(item, 1)
                self._started = item
                self._pending = PendingTokens(self._model.token_bytes)
                self._ids, self._new, self._content, self._entries = [], [], "", []
                return []
            case Piece():
                self.completion.num_new += 1
                return self._part(item.token)
            case Ended():
                self.completion.ended.append(item)
                self.whole.append(self._end(item))
                return [self.whole[-1] | {"content": "", "tokens": []}]

    def _part(self, token: Token) -> list[dict[str, Any]]:
        self._ids.append(token.id)
        self._new.append(token.id)
        self._content += token.text
        entries = []
        if self._log:
            entries = [chat_entry(each, self._model.token_bytes) for each in self._pending.push(token)]
            self._entries += entries
        if not token.text and not entries:
            return []
        assert self._started is not None
        part = {
            "index": self._started.index,
            "content": token.text,
            "tokens": self._new,
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self._ids),
            "tokens_evaluated": len(self._started.ids),
        }
        self._new = []
        return [part | ({"completion_probabilities": entries} if self._log else {})]

    def _end(self, ended: Ended) -> dict[str, Any]:
        assert self._started is not None
        word = self._stopping_word() if ended.finish == "stop" else ""
        count = len(self._started.ids)
        prompt = b"".join(map(self._model.token_bytes, self._started.ids)).decode(errors="replace")
        return {
            "index": ended.index,
            "content": self._content,
            "tokens": self._ids if self._fields.return_tokens else [],
            "id_slot": -1,
            "stop": True,
            "model": self._model.name,
            "tokens_predicted": len(self._ids),
            "tokens_evaluated": count,
            "generation_settings": self._settings(),
            "prompt": prompt,
            "has_new_line": "\n" in self._content,
            "truncated": False,
            "stop_type": _STOP_TYPES[ended.finish],
            "stopping_word": word,
            "tokens_cached": count + len(self._ids) - 1,
            "timings": timings(ended, count - ended.num_cached),
            **({"completion_probabilities": self._entries} if self._log else {}),
        }

    def _stopping_word(self) -> str:
        """The stop string that ended the text: the one that is complete first."""
        text = self._model.package.tokenizer.decode(self._ids)
        stops = (*self._texts.stop, *self._model.package.generation_config.stop_strings)
        stop_places = [(text.find(stop) + len(stop), stop) for stop in stops if stop in text]
        return min(stop_places, default=(0, ""))[1]

    def _settings(self) -> dict[str, Any]:
        assert self._started is not None
        config = self._model.config
        sampling = self._texts.sampling.over(config.sampling)
        limit = self._texts.max_tokens or config.max_new_tokens
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        return {
            "n_predict": _NO_LIMIT if limit is None else limit,
            "max_tokens": _NO_LIMIT if limit is None else limit,
            "seed": _NO_LIMIT if self._started.seed is None else self._started.seed,
            "temperature": temperature if sampling.draws else 0.0,
            "top_k": sampling.top_k or 0,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "min_p": sampling.min_p or 0.0,
            "repeat_penalty": sampling.repetition_penalty or 1.0,
            "presence_penalty": sampling.presence_penalty or 0.0,
            "frequency_penalty": sampling.frequency_penalty or 0.0,
            "stop": list(self._texts.stop),
            "ignore_eos": self._texts.ignore_eos,
            "n_probs": self._fields.n_probs or 0,
            "stream": bool(self._fields.stream),
        }


@asynccontextmanager
async def _events(
    run: Callable[[], AbstractAsyncContextManager[AsyncIterator[list[Event]]]],
    writer: _Writer,
    finish: Callable[[], None],
) -> AsyncIterator[AsyncIterator[bytes]]:
    async def events() -> AsyncIterator[bytes]:
        async for batch in batches:
            if parts := [part for each in batch for part in writer.push(each)]:
                yield b"".join(map(event, parts))

    async with run() as batches:
        try:
            yield events()
        finally:
            finish()


def _selected(text: dict[str, Any], paths: list[str] | None) -> dict[str, Any]:
    """The fields of a text that `response_fields` names, such as `generation_settings/n_predict`."""
    if not paths:
        return text
    selected: dict[str, Any] = {}
    for path in paths:
        value: Any = text
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            selected[path] = value
    return selected
