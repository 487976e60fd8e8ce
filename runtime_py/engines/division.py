"""The division of a text between two forms of a model, where each is faster in some phases.

A second engine takes time to load and memory, so it must pay for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations

from o2o.cli.text import counted
from runtime_py.engines.phases import Phase, named
from runtime_py.engines.speed_trial import Form, Speed, Speeds, by_speed

MAX_BYTES = 160_000_000
"""Bytes of the largest model that is loaded twice. Of a larger one, the weights take most of the memory."""
CLEAR = 1.06
"""How many times as fast a form must be in a phase to run it."""
TOKENS = 256
"""Tokens of a phase in a typical text."""
IMPORT = 0.1
"""About how many seconds the import of another runtime takes."""
SHORT_TEXTS, LONG_TEXTS = 3, 30
"""Texts in which a second engine saves the time of its loading. Long texts often come in long conversations,
or from the clients of a server. For short ones, a process may end after the first."""
LONG_PHASES = frozenset({Phase.LONG_PROMPT, Phase.FAR_DECODE})


@dataclass(frozen=True)
class Division:
    """Which of two forms runs each phase.

    Attributes:
        main: The form that is loaded at once.
        other: The form that is loaded when one of its phases comes.
        phases: The phases of `other`, at least one.
    """

    main: Form
    other: Form
    phases: frozenset[Phase]

    def form(self, phase: Phase) -> Form:
        """Return the form that runs a phase.

        Args:
            phase: The phase.

        Returns:
            One of the two forms.
        """
        return self.other if phase in self.phases else self.main

    @property
    def name(self) -> str:
        """The two engines and their phases. Where it is equal, texts have the same keys and values."""
        return f"{self.main.engine}, with {self.other.engine} for {named(self.phases)}"

    @property
    def description(self) -> str:
        """What `other` is for, as `onnx (2 threads) for long prompts`."""
        threads = counted(self.other.threads, "thread")
        return f"{self.other.engine} ({threads}) for {named(self.phases)}"


def divide(speeds: Speeds, size: int) -> Division | None:
    """Divide the phases of a text between two forms.

    Args:
        speeds: What was measured.
        size: Bytes of the model.

    Returns:
        The division that is the fastest in the mean of the phases; None where one form alone is as fast, or
        where a second engine does not pay.
    """
    phases = [phase for phase in Phase if all(speed.seconds(phase) is not None for speed in speeds.values())]
    if size > MAX_BYTES or len(speeds) < 2:
        return None
    fastest = {phase: min(_seconds(speed, phase) for speed in speeds.values()) for phase in phases}

    def cost(form_of: Callable[[Phase], Form]) -> float:
        return sum(_seconds(speeds[form_of(phase)], phase) / fastest[phase] for phase in phases)

    divisions = [
        Division(main, other, moved)
        for main, other in permutations(speeds, 2)
        if (moved := _moved(speeds[main], speeds[other], phases, IMPORT * (main.engine != other.engine)))
    ]
    if not divisions:
        return None
    alone = by_speed(speeds)[0]
    best = min(divisions, key=lambda one: (cost(one.form), len(one.phases - LONG_PHASES), one.main != alone))
    return best if cost(best.form) <= cost(lambda phase: alone) - (CLEAR - 1) else None


def _moved(main: Speed, other: Speed, phases: Iterable[Phase], importing: float) -> frozenset[Phase]:
    """The phases that move from one form to another, if that pays for loading and importing the other one."""
    price = other.load + importing
    moved = frozenset(phase for phase in phases if _seconds(main, phase) >= CLEAR * _seconds(other, phase))

    def saved(of: frozenset[Phase]) -> float:
        return TOKENS * sum(_seconds(main, phase) - _seconds(other, phase) for phase in of)

    if SHORT_TEXTS * saved(moved - LONG_PHASES) >= price:
        return moved
    return moved & LONG_PHASES if LONG_TEXTS * saved(moved & LONG_PHASES) >= price else frozenset()


def _seconds(speed: Speed, phase: Phase) -> float:
    seconds = speed.seconds(phase)
    assert seconds is not None
    return seconds
