"""Generation: the loop that continues a prompt, token by token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from o2o.errors import ModelError, UsageError
from runtime_py.generation.sampling import GREEDY, Sampling
from runtime_py.generation.session import Session
from runtime_py.generation.stop_strings import StopStrings
from runtime_py.text.detokenizer import Detokenizer

Finish = Literal["eos", "stop", "length", "capacity"]
"""Why generation ended: end of sequence; stop string or stop token; `max_new_tokens`; full KV caches."""


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: Its id.
        text: The text that can be shown now: often the text of this token. It is "" while a character, or a
            possible stop string, is incomplete. The texts of all tokens together are the decoded ids, up to
            the stop string.
        finish: Why generation ended, for the last token; None for the others.
    """

    id: int
    text: str
    finish: Finish | None = None


class GenerationOptions(TypedDict, total=False):
    """How a text is generated, and when it ends.

    Attributes:
        max_new_tokens: The largest number of new tokens; None for no limit.
        stop: Stop strings: the first complete one ends the text and is not shown.
        stop_tokens: Token ids that end the text, in addition to the checkpoint's end of sequence.
        sampling: How tokens are chosen; greedy by default.
    """

    max_new_tokens: int | None
    stop: Sequence[str]
    stop_tokens: Collection[int]
    sampling: Sampling


def generate(
    session: Session,
    prompt: Sequence[int],
    detokenizer: Detokenizer,
    *,
    eos: Collection[int] = (),
    stop_tokens: Collection[int] = (),
    stop: Sequence[str] = (),
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
) -> Iterator[Token]:
    """Continue a prompt.

    P prompt ids are followed by up to S + 1 - P new ones. A token needs a cache row only when it is fed back.

    Args:
        session: The session to generate in.
        prompt: Token ids [P].
        detokenizer: A new detokenizer.
        eos: The end-of-sequence ids.
        stop_tokens: See `GenerationOptions`.
        stop: See `GenerationOptions`.
        max_new_tokens: See `GenerationOptions`.
        sampling: See `GenerationOptions`.

    Yields:
        The new tokens, including the end-of-sequence token.

    Raises:
        UsageError: At the first token: the prompt is empty or longer than S, or a stop string is empty.
        ModelError: At the first token: a prompt id is not below V.
    """
    _check(session, prompt)
    stops, sampler = StopStrings(stop), sampling.sampler()
    ids = list(prompt)
    logits = session.read(ids)
    while True:
        token = sampler(logits, ids)
        ids.append(token)
        text, stopped = stops.push(detokenizer.push(token))
        finish: Finish | None = None
        if token in eos:
            finish = "eos"
        elif stopped or token in stop_tokens:
            finish = "stop"
        elif max_new_tokens is not None and len(ids) - len(prompt) >= max_new_tokens:
            finish = "length"
        elif len(ids) > session.capacity:
            finish = "capacity"
        if finish:
            if not stopped:
                rest, stopped = stops.push(detokenizer.flush())
                text += rest if stopped else rest + stops.flush()
                finish = "stop" if stopped and finish != "eos" else finish
            yield Token(token, text, finish)
            return
        yield Token(token, text)
        logits = session.append(token)


def _check(session: Session, prompt: Sequence[int]) -> None:
    if len(prompt) == 0:
        raise UsageError("the prompt is empty, and this tokenizer adds no begin token: give some text")
    if len(prompt) > session.capacity:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, the KV caches hold {session.capacity}: shorten it, or "
            f"export the model with a larger --max-length"
        )
    if (highest := max(prompt)) >= session.vocab_size:
        raise ModelError(
            f"the prompt has the token id {highest}, the model has ids below {session.vocab_size}: use "
            f"the tokenizer of the model's checkpoint"
        )
