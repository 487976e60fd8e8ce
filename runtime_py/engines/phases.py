"""The phases of a text: runs that differ in which engine and number of threads computes them fastest."""

from __future__ import annotations

from collections.abc import Set
from enum import Enum

from o2o.cli.text import listed

BOUNDARY = 256
"""Prompts of more tokens are long. Decode steps at this position and behind it are far."""


class Phase(Enum):
    """A kind of run. The value is its name, for display."""

    SHORT_PROMPT = "short prompts"
    LONG_PROMPT = "long prompts"
    NEAR_DECODE = f"decode up to {BOUNDARY} tokens"
    FAR_DECODE = f"decode behind {BOUNDARY} tokens"

    @staticmethod
    def of_prompt(length: int) -> Phase:
        """Return the phase of a prompt.

        Args:
            length: The number of tokens that are read.

        Returns:
            The phase.
        """
        return Phase.LONG_PROMPT if length > BOUNDARY else Phase.SHORT_PROMPT

    @staticmethod
    def of_decode(position: int) -> Phase:
        """Return the phase of a decode step.

        Args:
            position: The position of its token.

        Returns:
            The phase.
        """
        return Phase.FAR_DECODE if position >= BOUNDARY else Phase.NEAR_DECODE


def named(phases: Set[Phase]) -> str:
    """Return the names of phases, for display.

    Args:
        phases: The phases.

    Returns:
        Their names. All prompts, and all decode steps, have one name.
    """
    both = {
        "prompts": {Phase.SHORT_PROMPT, Phase.LONG_PROMPT},
        "decode": {Phase.NEAR_DECODE, Phase.FAR_DECODE},
    }
    complete = {name: of for name, of in both.items() if of <= phases}
    rest = phases - set[Phase]().union(*complete.values())
    return listed([*complete, *(phase.value for phase in Phase if phase in rest)])
