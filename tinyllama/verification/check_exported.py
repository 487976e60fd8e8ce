"""The check of verify.py and verify_flash.py: the exported programs against transformers and each other."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from export.options import GROUPED
from o2o.errors import UsageError
from o2o.operators.core_attention import FlashBlockSizes
from runtime_py.package import Package
from runtime_py.text.tokenizer import Tokenizer
from tinyllama.verification import comparison, flags
from tinyllama.verification.comparison import Step
from tinyllama.verification.exported import Exported, read_weights
from tinyllama.verification.hugging_face import HuggingFace
from tinyllama.verification.output import Report
from tinyllama.verification.protocol import PromptPredictor
from tinyllama.verification.trace import FLOAT32

RAISED = "; limits raised to twice the difference between Hugging Face's float32 and float64"
IDS, DECODED = 16, 8  # random input ids, and how many steps follow them


@dataclass(frozen=True)
class Limits:
    """The largest allowed differences of logits.

    Attributes:
        prefill: For the tokens of a prompt.
        decode: For tokens that are fed one by one.
        yardstick: The model whose float32 rounding error raises the limits. After prompts of hundreds of
            tokens, its error against float64 may exceed half a limit. The limit is then twice that error.
            None: fixed limits.
    """

    prefill: float
    decode: float
    yardstick: HuggingFace | None = None

    @classmethod
    def of(cls, tolerance: float | None, prefill: float, decode: float, yardstick: HuggingFace) -> Limits:
        """Return limits.

        Args:
            tolerance: The user's limit for all logits; None for the defaults.
            prefill: The default for a prompt's tokens.
            decode: The default for later tokens.
            yardstick: See `Limits`.

        Returns:
            The limits.
        """
        return cls(prefill, decode, yardstick) if tolerance is None else cls(tolerance, tolerance)

    def after(self, prompt: Sequence[int], generated: Sequence[int]) -> Limits:
        """Return the limits for a text.

        Args:
            prompt: The prompt's ids.
            generated: The ids after it.

        Returns:
            The limits.
        """
        if self.yardstick is None:
            return self
        open_ = 2 * self.yardstick.rounding([*prompt, *generated])
        prefill, decode = open_[: len(prompt)].max(), open_[len(prompt) :].max(initial=0)
        return Limits(max(self.prefill, float(prefill)), max(self.decode, float(decode)))

    def hold(self, prefill: float, decode: float) -> bool:
        """Check differences; nan is beyond every limit.

        Args:
            prefill: The difference for a prompt's tokens.
            decode: The difference for later tokens.

        Returns:
            Whether both are within the limits.
        """
        return prefill <= self.prefill and decode <= self.decode


@dataclass(frozen=True)
class Pair:
    """Two predictors whose logits and text must agree."""

    subject: PromptPredictor
    reference: PromptPredictor
    limits: Limits

    def __str__(self) -> str:
        return f"{self.subject.label} against {self.reference.label}"


def sizes(
    prompts: Mapping[str, Sequence[int]], max_new_tokens: int, positions: int | None
) -> tuple[int, int]:
    """Return the sizes that hold every prompt and the tokens generated after it.

    Args:
        prompts: {text: ids}.
        max_new_tokens: Tokens to generate; the last is never fed.
        positions: The model's number of positions; None for no limit.

    Returns:
        (T, S).

    Raises:
        UsageError: The model has fewer positions.
    """
    longest = max(IDS, *(len(ids) for ids in prompts.values()))
    needed = max(longest + max_new_tokens, IDS + DECODED) - 1
    if positions and needed > positions:
        raise UsageError(
            f"the longest prompt has {longest} tokens, and --max_new_tokens is {max_new_tokens}: this model "
            f"has {positions} positions, so shorten one of them"
        )
    return longest, needed


@dataclass(frozen=True)
class Setting:
    """A checkpoint for transformers and, with the same weights, for the exported programs.

    Attributes:
        directory: The checkpoint's folder.
        reference: The model run by transformers.
        weights: See `read_weights`.
        tokens: T; see `sizes`.
        capacity: S; see `sizes`.
    """

    directory: Path
    reference: HuggingFace
    weights: Sequence[torch.Tensor]
    tokens: int
    capacity: int

    def exported(
        self,
        attn_implementation: str = GROUPED,
        blocks: FlashBlockSizes | None = None,
        label: str = "exported program",
    ) -> Exported:
        """See `Exported`."""
        lengths = self.tokens, self.capacity
        return Exported(self.directory, self.weights, *lengths, attn_implementation, blocks, label)


def run(
    args: argparse.Namespace,
    prefill: float,
    decode: float,
    compared: Callable[[Setting], Sequence[tuple[PromptPredictor, PromptPredictor]]],
) -> int:
    """Run the verification that the command line describes.

    Args:
        args: The parsed command line.
        prefill: The default limit for a prompt's tokens.
        decode: The default limit for later tokens.
        compared: Returns pairs of subject and reference.

    Returns:
        The exit code.
    """
    directory = flags.directory_of(args)
    reference = HuggingFace(directory)
    tokenizer, prompts = flags.encode_prompts(args, directory)
    lengths = sizes(prompts, args.max_new_tokens, reference.capacity)
    setting = Setting(directory, reference, read_weights(directory), *lengths)
    limits = Limits.of(args.tolerance, prefill, decode, reference)
    pairs = [Pair(subject, other, limits) for subject, other in compared(setting)]
    report = Report()
    verify(report, pairs, prompts, tokenizer, args.max_new_tokens, Package(directory, directory).eos)
    return report.code


def verify(
    report: Report,
    pairs: Sequence[Pair],
    prompts: Mapping[str, Sequence[int]],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    eos: Collection[int],
) -> None:
    """Compare logits for random ids, then logits and text after each prompt.

    Args:
        report: Receives the results.
        pairs: What to compare.
        prompts: {text: ids}.
        tokenizer: Decodes the text.
        max_new_tokens: Tokens to generate.
        eos: Ids that end the text.
    """
    vocab_size = pairs[0].subject.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab_size, IDS).tolist()
    report.write(f"Verifying with input IDs: {IDS} at random, then {DECODED} one by one")
    good = [_logits(report, pair, ids, DECODED) for pair in pairs]
    report.verdict(all(good), "verify with input IDs")
    good = []
    for text, prompt in prompts.items():
        report.write(f"Verifying with prompt: {textwrap.shorten(text, 80)!r}, {len(prompt)} tokens")
        good += [_logits(report, pair, prompt, max_new_tokens, eos, tokenizer) for pair in pairs]
    report.verdict(all(good), "verify with prompts")
    report.verdict(report.passed, "verify_reauthored_model")


def _logits(
    report: Report,
    pair: Pair,
    prompt: Sequence[int],
    tokens: int,
    eos: Collection[int] = (),
    tokenizer: Tokenizer | None = None,
) -> bool:
    """Check that both compute the same logits, and the same text if there is a `tokenizer`."""
    subject, reference = pair.subject, pair.reference
    prefill = float(np.abs(reference.scores(prompt) - subject.scores(prompt)).max())
    steps = comparison.drift(reference, subject, prompt, tokens, eos)
    decode = max((step.off for step in steps[1:]), default=0.0)
    limits = pair.limits
    if not limits.hold(prefill, decode):
        limits = limits.after(prompt, [step.expected for step in steps[:-1]])
    close = limits.hold(prefill, decode)
    report.check(
        close,
        f"{pair}: prefill logits within {prefill:.1e} (limit {limits.prefill:.1e}), "
        f"decode logits within {decode:.1e} (limit {limits.decode:.1e})"
        f"{'' if limits in (pair.limits, replace(pair.limits, yardstick=None)) else RAISED}",
    )
    parted = comparison.parting(steps)
    if tokenizer:
        _text(report, pair, steps, tokenizer)
    if close and (parted is None or not tokenizer):
        return True
    at = _first(steps, prefill, limits, parted)
    where = f"prefill of {len(prompt)} tokens" if at == 0 else f"decode step {at}"
    limit = min(FLOAT32, limits.prefill if at == 0 else limits.decode)
    report.write(f"    {where}: {comparison.locate(reference, subject, prompt, steps, at, limit)}")
    return False


def _first(steps: Sequence[Step], prefill: float, limits: Limits, parted: int | None) -> int:
    """The first step beyond its limit."""
    if not prefill <= limits.prefill:
        return 0
    far = (number for number, step in enumerate(steps) if number and not step.off <= limits.decode)
    return min(number for number in (next(far, None), parted) if number is not None)


def _text(report: Report, pair: Pair, steps: Sequence[Step], tokenizer: Tokenizer) -> None:
    """Compare the generated text up to the first different choice."""
    parted = comparison.parting(steps)
    ids = [step.expected for step in steps]
    if parted is None:
        report.check(True, f"{pair}: the same {len(ids)} tokens: {tokenizer.decode(ids)!r}")
        return
    one, other, common = (
        tokenizer.decode(ids[parted : parted + 1]),
        tokenizer.decode([steps[parted].actual]),
        tokenizer.decode(ids[:parted]),
    )
    report.check(
        False,
        f"{pair}: after {parted} tokens, {common!r}, not {one!r} ({ids[parted]}) but {other!r} "
        f"({steps[parted].actual}), whose logit in the reference is {steps[parted].gap:.1e} lower",
    )
