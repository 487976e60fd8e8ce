"""Texts: what a request generates, as a generator that runs in a thread."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from o2o.errors import UsageError
from runtime_py.generation.generate import Finish, Token, generate
from runtime_py.generation.grammar import Grammar
from runtime_py.generation.logits_processors import LogitsProcessor
from runtime_py.generation.sampling import Sampling
from runtime_py.package import Package
from runtime_py.server.errors import ApiError
from runtime_py.server.models import ServedModel
from runtime_py.server.schemas import SamplingFields
from runtime_py.server.thread_stream import Cancelled
from runtime_py.text.detokenizer import Detokenizer

LOWEST_TEMPERATURE = 1e-4
"""Lower ones are 0: logits that are divided by them are not finite."""
Prompt = str | Sequence[int | str]
"""A text, or token ids and texts in a row."""


@dataclass(frozen=True)
class Texts:
    """The texts of a request.

    Attributes:
        prompts: Makes the prompts, in the thread: token ids or texts.
        choices: The number of texts for each prompt.
        sampling: How tokens are chosen, without a seed.
        seed: The seed of the first text; None for a random one.
        max_tokens: The largest number of new tokens; None for the limit of the package.
        stop: Stop strings.
        log_probabilities: See `GenerationOptions`.
        ignore_eos: Generate beyond the end of sequence.
        grammar: The form of the texts; None for any.
        continues: The text continues the prompt, with its leading space.
        timeout: Seconds after which a text ends.
        slot: The number of the KV caches to use if they are free; None for any.
    """

    prompts: Callable[[ServedModel], Sequence[Prompt]]
    choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    log_probabilities: int | None = None
    ignore_eos: bool = False
    grammar: Grammar | None = None
    continues: bool = False
    timeout: float | None = None
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A text begins.

    Attributes:
        index: The number of the text: those of a prompt follow each other.
        prompt: Its prompt, as the request has it.
        ids: Token ids [P] of the prompt.
        seed: The seed of its random numbers; None where nothing is random.
    """

    index: int
    prompt: Prompt
    ids: Sequence[int]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the text that started last."""

    index: int
    token: Token


@dataclass(frozen=True, slots=True)
class Ended:
    """A text ended.

    Attributes:
        index: The number of the text.
        finish: Why it ended.
        num_cached: How many tokens of the prompt were not computed.
        num_new: The number of new tokens.
        prompt_seconds: Time until the first token.
        new_seconds: Time from there to the last token.
    """

    index: int
    finish: Finish
    num_cached: int
    num_new: int
    prompt_seconds: float
    new_seconds: float


Event = Started | Piece | Ended


def generate_texts(model: ServedModel, texts: Texts, cancelled: Cancelled) -> Iterator[Event]:
    """Generate the texts of a request, one after the other.

    Args:
        model: The model. It is loaded if it is not in memory.
        texts: What to generate.
        cancelled: Ends the generation.

    Yields:
        For each text `Started`, a `Piece` for each token, and `Ended`.

    Raises:
        ApiError: A prompt does not fit.
        UsageError: See `runtime_py.generation.generate.generate`.
        ModelError: See `runtime_py.generation.generate.generate`.
    """
    package = model.package
    prompts = [(prompt, encoded(model, prompt)) for prompt in texts.prompts(model)]
    config = model.config
    processors = _processors(package, texts)
    if texts.ignore_eos and texts.grammar is None:
        config = replace(config, eos_token_id=())
    if texts.timeout is not None:
        config = replace(config, max_time=min(config.max_time or texts.timeout, texts.timeout))
    random = texts.sampling.over(config.sampling).draws
    first_seed = secrets.randbits(32) if texts.seed is None else texts.seed % 2**64
    with package.session(texts.slot) as session:
        cancelled.call(session.interrupt)
        for _, ids in prompts:
            _check_length(len(ids), session.capacity, ids, session.vocab_size)
        numbered = [(prompt, ids) for prompt, ids in prompts for _ in range(texts.choices)]
        for index, (prompt, ids) in enumerate(numbered):
            seed = first_seed + index % texts.choices if random else None
            yield Started(index, prompt, ids, seed)
            tokens = generate(
                session,
                ids,
                Detokenizer(package.tokenizer, texts.continues or texts.grammar is not None),
                config=config,
                stop=texts.stop,
                max_new_tokens=texts.max_tokens,
                sampling=replace(texts.sampling, seed=seed),
                logits_processors=processors,
                log_probabilities=texts.log_probabilities,
            )
            begin = time.perf_counter()
            first, count = 0.0, 0
            finish: Finish = "length"
            with closing(tokens):
                for token in tokens:
                    first = first or time.perf_counter()
                    count += 1
                    yield Piece(index, token)
                    finish = token.finish or finish
            end = time.perf_counter()
            cached = session.runs[0].start if session.runs else 0
            yield Ended(index, finish, cached, count, first - begin, end - first)


def _processors(package: Package, texts: Texts) -> list[LogitsProcessor]:
    if texts.grammar is None:
        return []
    try:
        return [package.grammar_processor(texts.grammar)]
    except UsageError as error:
        raise ApiError(400, str(error), code="invalid_grammar") from error


def sampling_of(fields: SamplingFields, logit_bias: Mapping[int, float] | None = None) -> Sampling:
    """Return how the tokens of a request are chosen, without the seed.

    Args:
        fields: The fields of the request.
        logit_bias: Bias by token id.

    Returns:
        The settings.

    Raises:
        UsageError: A value is out of range.
    """
    penalty = fields.repetition_penalty if fields.repeat_penalty is None else fields.repeat_penalty
    temperature = fields.temperature
    if temperature is not None and temperature < LOWEST_TEMPERATURE:
        temperature = 0
    values: dict[str, Any] = {
        "temperature": temperature,
        "top_p": fields.top_p,
        "top_k": None if fields.top_k is None else max(0, fields.top_k),
        "min_p": fields.min_p,
        "typical_p": fields.typical_p,
        "repetition_penalty": penalty,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "logit_bias": logit_bias or None,
    }
    return Sampling(**values)


def encoded(model: ServedModel, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt.

    Args:
        model: The model.
        prompt: The prompt.

    Returns:
        The ids [P]. Only a text at the beginning has begin and end tokens.

    Raises:
        UsageError: The tokenizer refuses the text.
    """
    encode = model.package.tokenizer.encode
    if isinstance(prompt, str):
        return encode(prompt)
    ids: list[int] = []
    for part in prompt:
        ids += [part] if isinstance(part, int) else encode(part, special=not ids)
    return ids


def _check_length(length: int, capacity: int, ids: Sequence[int], vocab_size: int) -> None:
    if length > capacity:
        raise ApiError(
            400,
            f"this model's maximum context length is {capacity} tokens, the prompt has {length}: shorten it",
            code="context_length_exceeded",
            kind="exceed_context_size_error",  # of llama.cpp
            n_prompt_tokens=length,
            n_ctx=capacity,
        )
    if length == 0:
        raise ApiError(400, "the prompt is empty, and this tokenizer adds no begin token: give some text")
    if (highest := max(ids)) >= vocab_size:
        raise ApiError(400, f"the prompt has the token id {highest}, the model has ids below {vocab_size}")
