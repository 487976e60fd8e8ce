"""Proofs that layers share, so that each runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from o2o.rewriting.matchers import MatchFailure

Result = TypeVar("Result")


class Proofs:
    """The results of proofs, by their arguments."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def once(self, prove: Callable[..., Result], *arguments: Any) -> Result:
        """Run a proof, or return its cached result.

        Args:
            prove: A function that returns what it proves, and raises MatchFailure if it fails.
            *arguments: Its arguments, which are hashable.

        Returns:
            Its result.

        Raises:
            MatchFailure: It fails.
        """
        key = (prove, *arguments)
        if key not in self._results:
            try:
                self._results[key] = prove(*arguments)
            except MatchFailure as failure:
                self._results[key] = failure
        result = self._results[key]
        if isinstance(result, MatchFailure):
            raise result
        return result
