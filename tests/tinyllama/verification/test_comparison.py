"""Two predictors fed the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from runtime_py.engines.prefill_plan import Chunk
from tinyllama.verification import comparison


class Script:
    """Predicts the given tokens for every input, and keeps what it was fed."""

    capacity, vocab_size = 100, 10

    def __init__(self, tokens: Sequence[int], height: float = 1.0) -> None:
        self.tokens, self.height = tokens, height
        self.fed: list[tuple[int, int]] = []

    def plan(self, prompt: int) -> list[Chunk]:
        return [Chunk(prompt, 0, prompt)]

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self.fed = []
        return self._logits(0)

    def decode(self, token: int, position: int) -> np.ndarray:
        self.fed.append((token, position))
        return self._logits(len(self.fed))

    def close(self) -> None: ...

    def _logits(self, step: int) -> np.ndarray:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.tokens[step]] = self.height
        return logits


def test_both_are_fed_what_the_reference_chooses() -> None:
    reference, subject = Script([3, 4, 5, 6]), Script([3, 7, 5, 6])

    steps = comparison.drift(reference, subject, [1, 1], 4)

    assert subject.fed == reference.fed == [(3, 2), (4, 3), (5, 4)]
    assert [step.expected for step in steps] == [3, 4, 5, 6]
    assert comparison.parting(steps) == 1
    assert comparison.parting(steps[2:]) is None
    assert (steps[1].actual, steps[1].off, steps[1].gap) == (7, 1.0, 1.0)
    assert steps[0].off == steps[0].noise == 0


def test_a_text_ends_with_its_end() -> None:
    assert [
        step.expected for step in comparison.drift(Script([3, 2, 5]), Script([3, 2, 5]), [1], 3, {2})
    ] == [3, 2]


def test_noise_knows_no_scale_and_no_shift() -> None:
    rng = np.random.default_rng(0)
    expected, error = rng.standard_normal((2, 1000))

    noise = comparison.step(expected, expected + 0.1 * error).noise

    assert noise == pytest.approx(0.1, rel=0.1)
    assert comparison.step(50 * expected, 50 * expected + 5 * error + 7).noise == pytest.approx(noise)


def test_no_number_is_infinitely_far_off() -> None:
    step = comparison.step(np.zeros(3), np.array([0.0, np.nan, 0.0]))

    assert step.off == step.noise == np.inf
