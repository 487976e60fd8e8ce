"""Generation: the loop that continues a prompt, token by token."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from o2o.errors import UsageError
from runtime_py.engines.token_ids import check_prompt, stop_ids, token_ids
from runtime_py.generation import setting_types
from runtime_py.generation.generation_config import GenerationConfig
from runtime_py.generation.grammar import Grammar
from runtime_py.generation.log_probabilities import TokenLogProbability, log_softmax, top_tokens
from runtime_py.generation.logits_processors import ForcesTokens, LogitsProcessor
from runtime_py.generation.processor_chain import check_ids, processor_chain
from runtime_py.generation.sampler import Sampler, sampler
from runtime_py.generation.sampling import Sampling
from runtime_py.generation.session import Session
from runtime_py.generation.speculation import SpeculativeDecoding
from runtime_py.generation.stop_strings import StopStrings
from runtime_py.text.detokenizer import Detokenizer

Finish = Literal["eos", "stop", "length", "capacity"]
"""Why generation ended: end of sequence; stop string or token; limit of tokens or time; full KV caches."""


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: Its id.
        text: The text that can be shown now: often the text of this token. It is "" while a character, or a
            possible stop string, is incomplete. The texts of all tokens together are the decoded ids, up to
            the stop string.
        finish: Why generation ended, for the last token; None for the others.
        log_probability: log p of the token in nats, by the model alone: without temperature, penalties and
            other logits processors. None unless `log_probabilities` was requested.
        top: The most likely tokens at this place, the most likely first, in the same sense.
    """

    id: int
    text: str
    finish: Finish | None = None
    log_probability: float | None = None
    top: tuple[TokenLogProbability, ...] = ()


class GenerationOptions(TypedDict, total=False):
    """How a text is generated, and when it ends.

    Attributes:
        max_new_tokens: The largest number of new tokens; None for the limit of `generation_config.json`.
        min_new_tokens: The number of new tokens before which no end of sequence is chosen; None for the
            number of `generation_config.json`.
        stop: A stop string, or several: the first complete one ends the text and is not shown.
        stop_tokens: Token ids that end the text, in addition to the checkpoint's end of sequence.
        sampling: How tokens are chosen. Its settings go before those of `generation_config.json`; None has
            no settings. `GREEDY` ignores the file.
        logits_processors: Functions that change the logits, applied in this order after the penalties and
            constraints of `sampling` and of the file, and before the temperature.
        log_probabilities: Compute the log-probability of each token, and of this number of most likely
            tokens at its place. 0 is the token's alone; None is none.
        grammar: The form of the text: `Package.stream` adds its logits processor. None for any text. Such a
            text keeps its leading space.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    stop: str | Sequence[str]
    stop_tokens: Collection[int]
    sampling: Sampling | None
    logits_processors: Sequence[LogitsProcessor]
    log_probabilities: int | None
    grammar: Grammar | None


def generate(
    session: Session,
    prompt: Sequence[int],
    detokenizer: Detokenizer,
    *,
    config: GenerationConfig | None = None,
    stop_tokens: Collection[int] = (),
    stop: str | Sequence[str] = (),
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    log_probabilities: int | None = None,
) -> Generator[Token, None, None]:
    """Continue a prompt.

    P prompt ids are followed by up to S + 1 - P new ones. A token needs a cache row only when it is fed back.

    Args:
        session: The session to generate in.
        prompt: Token ids [P].
        detokenizer: A new detokenizer.
        config: The checkpoint's settings; None for greedy decoding without an end of sequence.
        stop_tokens: See `GenerationOptions`.
        stop: See `GenerationOptions`.
        max_new_tokens: See `GenerationOptions`.
        min_new_tokens: See `GenerationOptions`.
        sampling: See `GenerationOptions`.
        logits_processors: See `GenerationOptions`.
        log_probabilities: See `GenerationOptions`.

    Yields:
        The new tokens, including the end-of-sequence token.

    Raises:
        UsageError: At the first token: the prompt is empty, too long or no list of ids; an option is out of
            range; the session generates another text. At any token: the session or its engine was closed.
        ModelError: A token id of the prompt or of `config` is not below V, logits are not finite, or no token
            can be chosen.
    """
    ids = _check(prompt, session)
    prompt = tuple(ids)
    stop_tokens = stop_ids(stop_tokens, session.vocab_size, "stop_tokens")
    config = config or GenerationConfig()
    options = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    for name, value in (options | {"log_probabilities": log_probabilities}).items():
        if value is not None:
            setting_types.check(name, value)
    if max_new_tokens is not None and min_new_tokens is not None and min_new_tokens > max_new_tokens:
        raise UsageError(f"min_new_tokens is {min_new_tokens}, and max_new_tokens only {max_new_tokens}")
    limit = config.length_limit(len(prompt), max_new_tokens)
    choose = _sampler(session, prompt, config, limit, min_new_tokens, sampling, logits_processors)
    stops = StopStrings(_stop_strings(stop) + config.stop_strings)
    deadline = None if config.max_time is None else time.monotonic() + config.max_time
    with session.generation():
        logits = session.read(ids)
        decoding = SpeculativeDecoding(session, prompt, limit, _grammar(logits_processors))
        while True:
            token = choose(ids, logits)
            evidence = () if log_probabilities is None else _evidence(logits, token, log_probabilities)
            ids.append(token)
            text, stopped = stops.push(detokenizer.push(token))
            finish: Finish | None = None
            if token in config.eos_token_id:
                finish = "eos"
            elif stopped or token in stop_tokens:
                finish = "stop"
            elif (limit is not None and len(ids) >= limit) or (deadline and time.monotonic() >= deadline):
                finish = "length"
            elif len(ids) > session.capacity:
                finish = "capacity"
            if finish:
                if not stopped:
                    rest, stopped = stops.push(detokenizer.flush())
                    text += rest if stopped else rest + stops.flush()
                    finish = "stop" if stopped and finish != "eos" else finish
                yield Token(token, text, finish, *evidence)
                return
            yield Token(token, text, None, *evidence)
            logits = decoding.append(ids)


def _sampler(
    session: Session,
    prompt: Sequence[int],
    config: GenerationConfig,
    limit: int | None,
    min_new_tokens: int | None,
    sampling: Sampling | None,
    logits_processors: Sequence[LogitsProcessor],
) -> Sampler:
    """The choice of tokens by the caller's options over those of the checkpoint.

    limit: The number of ids at which the text ends; None for no limit.
    """
    sampling = Sampling() if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise UsageError(f"sampling is {sampling!r}: it must be a Sampling")
    check_ids(sampling, session.vocab_size)
    config.check_ids(session.vocab_size)
    if min_new_tokens is not None:
        min_length = len(prompt) + min_new_tokens
    else:
        min_length = 0 if sampling.greedy else config.smallest_length(len(prompt))
    full = session.capacity + 1
    sampling = sampling.over(config.sampling)
    chain = processor_chain(
        sampling,
        prompt,
        vocab_size=session.vocab_size,
        eos=config.eos_token_id,
        min_length=min_length,
        max_length=full if limit is None else min(limit, full),
        custom=logits_processors,
    )
    return sampler(sampling, chain)


def _grammar(processors: Iterable[object]) -> ForcesTokens | None:
    """The first processor that knows tokens in advance."""
    return next((processor for processor in processors if isinstance(processor, ForcesTokens)), None)


def _evidence(logits: np.ndarray, token: int, count: int) -> tuple[float, tuple[TokenLogProbability, ...]]:
    """The log-probability of a token and of the `count` most likely ones, for the end of a `Token`."""
    log_probabilities = log_softmax(logits)
    return float(log_probabilities[token]), top_tokens(log_probabilities, count)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if not isinstance(stop, Iterable):
        raise UsageError(f"stop is {stop!r}: it must be a string or a list of strings")
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _check(prompt: Any, session: Session) -> list[int]:
    ids = token_ids(prompt)
    if not ids:
        raise UsageError("the prompt is empty, and this tokenizer adds no begin token: give some text")
    return check_prompt(ids, session)
