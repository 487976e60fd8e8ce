"""Compare two predictors that read the same tokens: their logits, and the first different choice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.engines.engine import CausalLM
from tinyllama.verification.protocol import Predictor
from tinyllama.verification.trace import differences, first_difference


@dataclass(frozen=True)
class Step:
    """The logits [V] of two predictors for one token, compared.

    Attributes:
        expected: The choice of the reference.
        actual: The choice of the other.
        off: The largest absolute difference.
        noise: The standard deviation of the difference, relative to the standard deviation of the reference's
            logits.
        gap: The reference's logit of its own choice minus the reference's logit of the other choice.
    """

    expected: int
    actual: int
    off: float
    noise: float
    gap: float


def step(expected: np.ndarray, actual: np.ndarray) -> Step:
    """Compare logits. Values that are not finite are infinitely far off.

    Args:
        expected: The reference's logits [V].
        actual: The other's logits [V].

    Returns:
        The comparison.
    """
    choice, other = int(expected.argmax()), int(actual.argmax())
    gap = float(expected[choice] - expected[other])
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return Step(choice, other, np.inf, np.inf, gap)
    difference = actual.astype(np.float64) - expected
    return Step(
        choice,
        other,
        float(np.abs(difference).max()),
        float(difference.std() / max(float(expected.std()), 1e-30)),
        gap,
    )


def drift(
    reference: CausalLM,
    subject: CausalLM,
    prompt: Sequence[int],
    tokens: int,
    eos: Collection[int] = (),
) -> list[Step]:
    """Feed both predictors the reference's choices after a prompt, and compare their logits.

    Step 0 compares the prompt's logits. Until the choices differ, both generate these tokens by themselves.

    Args:
        reference: Its choices are fed.
        subject: The predictor to check.
        prompt: The prompt's ids.
        tokens: The largest number of steps.
        eos: Ids that end the text.

    Returns:
        One comparison for each step.
    """
    steps = [step(reference.prefill(prompt), subject.prefill(prompt))]
    for position in range(len(prompt), len(prompt) + tokens - 1):
        token = steps[-1].expected
        if token in eos:
            break
        steps.append(step(reference.decode(token, position), subject.decode(token, position)))
    return steps


def parting(steps: Sequence[Step]) -> int | None:
    """Find the first step at which the choices differ.

    Args:
        steps: The compared steps.

    Returns:
        Its number; None if there is none.
    """
    return next((number for number, step in enumerate(steps) if step.expected != step.actual), None)


def locate(
    reference: Predictor,
    subject: Predictor,
    prompt: Sequence[int],
    steps: Sequence[Step],
    at: int,
    limit: float,
) -> str:
    """Describe the first intermediate tensor that differs at a step.

    Args:
        reference: See `drift`.
        subject: See `drift`.
        prompt: The prompt's ids.
        steps: The compared steps.
        at: The number of the step.
        limit: The largest allowed difference, relative to the tensor's largest element.

    Returns:
        A text for the report.
    """
    fed = [step.expected for step in steps[:at]]
    return first_difference(differences(reference.trace(prompt, fed), subject.trace(prompt, fed)), limit)
