"""The loop that turns a prompt into tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from o2o.errors import ModelError, UsageError
from runtime_py.detokenizer import Detokenizer
from runtime_py.engines import Engine
from runtime_py.sampling import Sampler, greedy

Finish = Literal["eos", "length", "capacity"]
"""Why generation ended: an end-of-sequence id, enough tokens, or a full cache."""


@dataclass(frozen=True)
class Token:
    """One generated token.

    text: what can be shown now that could not before: often one token's text, "" while a character is
    incomplete. The texts of all tokens together are the decoded ids.
    finish: None, but for the last token.
    """

    id: int
    text: str
    finish: Finish | None = None


def generate(
    engine: Engine,
    prompt: Sequence[int],
    detokenizer: Detokenizer,
    *,
    eos: Collection[int] = (),
    max_new_tokens: int | None = None,
    sampler: Sampler = greedy,
) -> Iterator[Token]:
    """Yield the tokens that follow `prompt` (ids [P]), the end-of-sequence id included.

    It ends at an id in `eos`, after `max_new_tokens` (None: no limit), or when the cache is full. A token
    needs room only when it is fed back, so P ids are followed by up to S + 1 - P.

    Raises UsageError for a prompt that is empty or longer than S, ModelError for ids beyond V, both at
    the first step.
    """
    _check(engine, prompt)
    logits = engine.prefill(prompt)
    for position in range(len(prompt), engine.capacity + 1):
        token = sampler(logits)
        finish: Finish | None = None
        if token in eos:
            finish = "eos"
        elif max_new_tokens is not None and position - len(prompt) + 1 >= max_new_tokens:
            finish = "length"
        elif position == engine.capacity:
            finish = "capacity"
        text = detokenizer.push(token)
        if finish:
            yield Token(token, text + detokenizer.flush(), finish)
            return
        yield Token(token, text)
        logits = engine.decode(token, position)


def _check(engine: Engine, prompt: Sequence[int]) -> None:
    if len(prompt) == 0:
        raise UsageError("the prompt is empty, and this tokenizer begins with no token: give some text")
    if len(prompt) > engine.capacity:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, the model holds {engine.capacity}: "
            "shorten it, or export the model with a larger --max-length"
        )
    if (highest := max(prompt)) >= engine.vocab_size:
        raise ModelError(
            f"the tokenizer gave id {highest}, the model knows ids below {engine.vocab_size}: "
            "they are not from the same checkpoint"
        )
