"""The time of runs, and whether they are exact."""

from __future__ import annotations

import math

from runtime_py.generation.verification import COST_PER_TOKEN, FORGET, TRIALS, Verification


def test_costs_are_medians_relative_to_a_step() -> None:
    costs = Verification()
    assert costs.cost(4) == 1 + 3 * COST_PER_TOKEN
    for length, seconds in ((1, 9.0), (4, 9.0)):  # the first run of each does not count
        costs.add(length, seconds)
    for seconds in (1.0, 1.0, 7.0):
        costs.add(1, seconds)
        costs.add(4, 3 * seconds)
    assert costs.cost(4) == 3
    for _ in range(FORGET + 1):
        costs.add(1, 1.0)
    assert costs.cost(4) == 1 + 3 * COST_PER_TOKEN  # tried again


def test_costs_are_relative_to_runs_near_them() -> None:
    """Other programs make all runs slower for a while, and steps are rare while drafts are used."""
    costs = Verification()
    for length in (1, 5, 20, 1):
        costs.add(length, 1.0)
    for slowness in (1.0, 4.0):
        for _ in range(20):
            costs.add(5, 1.5 * slowness)
            costs.add(20, 3.0 * slowness)
    assert costs.cost(5) == 1.5
    assert costs.cost(20) == 3


def test_runs_that_are_not_exact_are_refused() -> None:
    exact, rounded, allowed = Verification(), Verification(), Verification(rounded_drafts=True)
    for _ in range(TRIALS):
        assert exact.needs_trial(4)
        exact.compared(4, True)
    assert not exact.needs_trial(4)
    assert exact.needs_trial(8)
    assert exact.cost(8) < 8
    rounded.compared(4, False)
    assert rounded.cost(8) == math.inf
    assert not allowed.needs_trial(4)


def test_one_time_work_waits_until_drafts_would_have_saved_its_time() -> None:
    runs = Verification()
    assert runs.pays_setup(4, 0.5, 0)
    assert not runs.pays_setup(4, 0.5, 3.0)  # the time of a step is not known yet
    runs.add(1, 9.0)
    runs.add(1, 2.0)
    assert not runs.pays_setup(4, 0.5, 3.0)
    assert not runs.pays_setup(8, 0.5, 3.0)  # each length by itself
    assert runs.pays_setup(4, 0.5, 3.0)
