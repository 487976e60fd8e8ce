"""The measured time of runs."""

from __future__ import annotations

from runtime_py.generation.step_costs import COST_PER_TOKEN, FORGET, StepCosts


def test_costs_are_medians_relative_to_a_step() -> None:
    costs = StepCosts()
    assert costs.relative(4) == 1 + 3 * COST_PER_TOKEN
    for length, seconds in ((1, 9.0), (4, 9.0)):  # the first run of each does not count
        costs.add(length, seconds)
    for seconds in (1.0, 1.0, 7.0):
        costs.add(1, seconds)
        costs.add(4, 3 * seconds)
    assert costs.relative(4) == 3
    for _ in range(FORGET + 1):
        costs.add(1, 1.0)
    assert costs.relative(4) == 1 + 3 * COST_PER_TOKEN  # tried again
