"""Speculative decoding: a draft of several tokens is verified in one run of the engine.

A decode step reads all weights for one token. A run of T tokens reads them once, too. So the engine feeds a
token and its draft together (`EngineSession.verify`), and returns the logits that follow each. The sampler
chooses from them one by one, as always. Where it chooses the drafted token, the next logits are there. At the
first other token the rest is dropped; its rows in the KV caches are overwritten.

The text is the same as without drafts. The logits that a token is chosen from are those of decode steps. Each
token is chosen once, by the same logits processors and the same random numbers. This is also rejection
sampling: a drafted token is accepted with its probability, and else another token is drawn from the rest of
the distribution.

Drafts come from the text (`runtime_py.generation.prompt_lookup`) and from its grammar
(`runtime_py.generation.forced_tokens`). A run of T tokens takes longer than a step. How much longer is
measured (`runtime_py.generation.verification`). A draft is used only where the tokens that are expected to
agree are worth that time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from runtime_py.engines.finite_logits import check_logits
from runtime_py.generation.forced_tokens import ForcedTokens
from runtime_py.generation.logits_processors import ForcesTokens
from runtime_py.generation.prompt_lookup import PromptLookup
from runtime_py.generation.session import Session

GAIN = 1.1
"""The speed relative to decode steps from which a draft is used."""


class SpeculativeDecoding:
    """Feeds the tokens of one text to its session, with drafts where they pay."""

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        max_length: int | None,
        grammar: ForcesTokens | None = None,
    ) -> None:
        """Begin behind a prompt that the session has read.

        Args:
            session: The session.
            prompt: Token ids [P].
            max_length: The largest number of ids of the text, prompt included; None for no limit but S.
            grammar: The logits processor of a grammar; None for a text without one.
        """
        self._session = session
        self._limit = session.capacity if max_length is None else min(session.capacity, max_length - 1)
        drafts = session.verify_lengths(0) and not session.verification.refused
        self._lookup = PromptLookup(prompt) if drafts else None
        self._grammar = None if grammar is None else ForcedTokens(grammar)
        self._draft: list[int] = []
        self._num_forced = 0  # the tokens of the draft that the grammar forces
        self._logits = np.zeros((0, 0), np.float32)  # those that follow the tokens of the draft

    def append(self, ids: Sequence[int]) -> np.ndarray:
        """Feed the next token of the text.

        Args:
            ids: The ids of the text. The last one is the token that was chosen.

        Returns:
            The logits [V] float32 that follow it.
        """
        session, lookup, token = self._session, self._lookup, ids[-1]
        if lookup is None:
            return session.append(token)
        lookup.append(token)
        if self._draft and self._is_accepted(token):
            session.accept(token)
            session.drafts.accepted += 1
            logits, self._draft, self._logits = self._logits[0], self._draft[1:], self._logits[1:]
            return check_logits(logits, len(ids) - 1)
        self._draft = []
        if not lookup.place and self._grammar is None:
            return session.append(token)
        most = self._limit - len(ids)
        lengths = session.verify_lengths(len(ids) - 1) if most > 0 else ()
        most = min(lengths[-1] - 1, most) if lengths else 0
        draft, expected = self._expected(ids, lookup, most)
        length = self._best_length(lengths, expected)
        begin = time.perf_counter()
        if length == 1:
            logits = session.append(token)
            session.verification.add(1, time.perf_counter() - begin)
            return logits
        self._draft = (draft or lookup.draft(most))[: length - 1]
        is_trial = session.verification.needs_trial(length)
        if is_trial:
            step = session.append(token)
            session.back()
            begin = time.perf_counter()
        rows = session.verify(token, self._draft)
        session.verification.add(length, time.perf_counter() - begin)
        if is_trial:
            exact = np.array_equal(rows[0], step)
            session.verification.compared(length, exact)
            if not exact:
                session.back()
                self._draft, self._lookup = [], None
                return session.append(token)
        session.drafts.runs += 1
        session.drafts.drafted += len(self._draft)
        self._logits = rows[1:]
        return check_logits(rows[0], len(ids) - 1)

    def _is_accepted(self, token: int) -> bool:
        """Whether the next token of the draft was chosen."""
        agrees = self._draft[0] == token
        if self._num_forced and self._grammar is not None:
            self._grammar.add(agrees)
            self._num_forced -= 1
        return agrees

    def _expected(
        self, ids: Sequence[int], lookup: PromptLookup, count: int
    ) -> tuple[list[int], Sequence[float]]:
        """A draft that begins with what the grammar forces, if anything, and what is expected of the draft.

        Without such a draft, the expected numbers are those of `lookup`.
        """
        expected = lookup.expected(count)
        forced = [] if self._grammar is None or not count else self._grammar.draft(ids)[:count]
        self._num_forced = len(forced)
        if self._grammar is None or not forced:
            return [], expected
        certain = self._grammar.expected(len(forced))
        certain += [certain[-1]] * (count - len(forced))
        copied = lookup.draft(count)
        if copied[: len(forced)] == forced:
            return copied, [*map(max, certain, expected)]
        return forced, certain

    def _best_length(self, lengths: Sequence[int], expected: Sequence[float]) -> int:
        """The number of tokens of the next run; 1 for a decode step."""
        best, speed = 1, GAIN
        for length in lengths:
            agreeing = expected[min(length, len(expected)) - 1]
            gain = (1 + agreeing) / self._session.verification.cost(length)
            if gain > speed and self._session.verification.pays_setup(
                length, 1 - 1 / gain, self._session.verify_setup(length)
            ):
                best, speed = length, gain
        return best
