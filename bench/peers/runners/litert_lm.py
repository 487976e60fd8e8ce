"""Runner of LiteRT-LM: sessions of its Python API. Its tokenizer has a word `tN` for each id N.

The API takes and returns text only, and no logits. A session computes ahead of the reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import litert_lm

from bench.peers.runners.serving import serve


class LiteRtLm:
    """See `Runner`."""

    def __init__(self, model: str, threads: int, **_: Any) -> None:
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
        self._engine = litert_lm.Engine(model, backend=litert_lm.interfaces.CPU(thread_count=threads))
        self._session: litert_lm.Session | None = None
        self._tokens: Iterator[int] = iter(())
        self._parts: list[Sequence[int]] = []
        self._last = -1

    def prefill(self, ids: Sequence[int]) -> int:
        self.stop()
        self._start([ids])
        return self._last

    def decode(self, token: int) -> int:
        """See `Runner`. A session goes on with its own choice; another token starts it again."""
        if token != self._last:
            self.stop()
            self._start([*self._parts, [token]])
        else:
            self._parts.append([token])
            self._last = next(self._tokens)
        return self._last

    def stop(self) -> None:
        """End the session, which computes ahead."""
        if self._session is not None:
            self._session.cancel_process()
            for _ in self._tokens:
                pass
            self._session.close()
            self._session = None

    def _start(self, parts: Sequence[Sequence[int]]) -> None:
        self._parts = [*parts]
        self._session = self._read(parts)
        self._tokens = _ids(self._session.run_decode_async())
        self._last = next(self._tokens)

    def _read(self, parts: Sequence[Sequence[int]]) -> litert_lm.Session:
        session = self._engine.create_session(apply_prompt_template=False)
        for part in parts:
            session.run_prefill([_text(part)])
        return session


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in ids)


def _ids(responses: Iterator[litert_lm.Responses]) -> Iterator[int]:
    """The ids in the texts of a session."""
    texts = itertools.chain.from_iterable(response.texts for response in responses)
    for text in texts:
        yield from (int(word) for word in text.replace("t", " ").split())


if __name__ == "__main__":
    serve(LiteRtLm)
