"""The loop that turns a prompt into tokens."""

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
"""Why generation ended: an end-of-sequence id, a stop string or token, enough tokens, or full caches."""


@dataclass(frozen=True)
class Token:
    """One generated token.

    text: what can be shown now that could not before: often one token's text, "" while a character, or what
    may be a stop string, is incomplete. The texts of all tokens together are the decoded ids, up to the stop
    string.
    finish: None, but for the last token.
    """

    id: int
    text: str
    finish: Finish | None = None


class Options(TypedDict, total=False):
    """How a text is generated, and when it ends.

    max_new_tokens: no more than so many. stop: strings, of which the first to be complete ends the text, and
    is not shown. stop_tokens: ids that do, beside the checkpoint's own. sampling: how tokens are chosen; the
    likeliest if it is left out.
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
    """Yield the tokens that follow `prompt` (ids [P]), the end-of-sequence id included.

    It ends at an id in `eos` or `stop_tokens`, when a string of `stop` is complete, after `max_new_tokens`
    (None: no limit), or when the caches are full. A token needs room only when it is fed back, so P ids are
    followed by up to S + 1 - P.

    Raises UsageError for a prompt that is empty or longer than S, and for an empty stop string, ModelError
    for ids beyond V, all at the first step.
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
                more, stopped = stops.push(detokenizer.flush())
                text += more if stopped else more + stops.flush()
                finish = "stop" if stopped and finish != "eos" else finish
            yield Token(token, text, finish)
            return
        yield Token(token, text)
        logits = session.append(token)


def _check(session: Session, prompt: Sequence[int]) -> None:
    if len(prompt) == 0:
        raise UsageError("the prompt is empty, and this tokenizer begins with no token: give some text")
    if len(prompt) > session.capacity:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, the model holds {session.capacity}: "
            "shorten it, or export the model with a larger --max-length"
        )
    if (highest := max(prompt)) >= session.vocab_size:
        raise ModelError(
            f"the tokenizer gave id {highest}, the model knows ids below {session.vocab_size}: "
            "they are not from the same checkpoint"
        )
