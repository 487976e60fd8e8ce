"""Sampling: how the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from o2o.errors import UsageError
from runtime_py.generation import setting_types


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None is "not set": the value of `generation_config.json` applies, or no effect.

    Names and meanings are those of transformers' `GenerationConfig`, except `greedy`, `seed`,
    `frequency_penalty`, `presence_penalty` and `logit_bias`.

    Attributes:
        greedy: Choose the token with the largest logit. No other setting, here or in the file, has an effect.
        do_sample: Draw tokens at random; otherwise choose the most likely one. None is True if a setting of
            `SAMPLING_ONLY` is set. None is False if `temperature` is 0.
        seed: Seed of the random numbers; None for a new one each time.
        temperature: Divides the logits. 0 is the choice of the most likely token.
        top_k: Draw from this number of most likely tokens. 0 is no limit.
        top_p: Draw from the smallest set of most likely tokens with at least this total probability.
        min_p: Drop tokens below this share of the highest probability.
        typical_p: Draw from the most typical tokens with at least this total probability.
        top_h: Draw from the most likely tokens up to this share of the entropy.
        epsilon_cutoff: Drop tokens below this probability.
        eta_cutoff: Drop tokens below this probability, or a smaller one where the entropy is large.
        repetition_penalty: Divides positive logits of tokens in the text, and multiplies negative ones.
        encoder_repetition_penalty: Multiplies positive logits of tokens in the prompt, divides negative ones.
        frequency_penalty: Subtracted from a logit for each time the token was generated.
        presence_penalty: Subtracted from a logit if the token was generated.
        exponential_decay_length_penalty: The number of new tokens after which the logit of the end of
            sequence rises; the base of the exponential.
        no_repeat_ngram_size: An n-gram of this size occurs once in the text.
        encoder_no_repeat_ngram_size: No n-gram of this size is repeated from the prompt.
        logit_bias: Added to the logit, by token id. -inf forbids the token.
        sequence_bias: Added to the logit of the last token of a sequence after its other tokens.
        bad_words_ids: Sequences of token ids that are not generated.
        suppress_tokens: Token ids that are not generated.
        begin_suppress_tokens: Token ids that are not generated first.
        forced_bos_token_id: The token after a prompt of one token.
        forced_eos_token_id: The token, or one of the tokens, at the maximum length.
        remove_invalid_values: Replace infinite logits by finite ones. NaN is an error here.
        renormalize_logits: Replace the processed logits by log-probabilities.

    Raises:
        UsageError: A value has a wrong type or is out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    greedy: bool = False
    do_sample: bool | None = None
    typical_p: float | None = None
    top_h: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    encoder_repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    logit_bias: Mapping[int, float] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None

    def __post_init__(self) -> None:
        for name, value in self._set.items():
            setting_types.check(name, value)
        if self.do_sample and self.temperature == 0:
            raise UsageError("temperature is 0 and do_sample is true: set one of them")

    @property
    def _set(self) -> dict[str, Any]:
        """The settings that have a value, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return not self.greedy and bool(self._do_sample)

    @property
    def _do_sample(self) -> bool | None:
        """`do_sample`, or its value by the other settings; None if they do not matter."""
        if self.do_sample is not None:
            return self.do_sample
        if self.temperature is not None:
            return bool(self.temperature > 0)  # not a bool of numpy
        return True if any(name in SAMPLING_ONLY for name in self._set) else None

    def over(self, defaults: Sampling) -> Sampling:
        """Fill the settings that have no value.

        Args:
            defaults: Their values, of `generation_config.json`.

        Returns:
            These settings, over the defaults.
        """
        if self.greedy:
            return self
        do_sample = defaults.draws if self._do_sample is None else self._do_sample
        values = defaults._set | self._set | {"do_sample": do_sample}
        if do_sample and self.temperature is None and not defaults.temperature:
            values.pop("temperature", None)  # 0 in a file without sampling
        return Sampling(**values)


SAMPLING_ONLY = (
    *("seed", "temperature", "top_k", "top_p", "min_p"),
    *("typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
)
"""The settings that have an effect only where tokens are drawn at random."""

GREEDY = Sampling(greedy=True)
"""The token with the largest logit, whatever `generation_config.json` says."""
