"""Signatures that are compiled as one model, each when it is first used.

LiteRT compiles all signatures of a model. With 30 layers, a decode takes 14 to 40 ms and a prefill of 512
tokens 300 ms. A text uses few of them. So the first model has few signatures, and a model with more takes its
place when they are needed. The former model is closed before: each maps all packed weights into memory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from o2o.cli.silence_stderr import silenced_stderr
from runtime_py.engines.litert.bound_signature import BoundSignature
from runtime_py.engines.litert.compiled_model import RefusedByLiteRt
from runtime_py.model.contract import SignatureSpec, Slot, TensorSpec

with silenced_stderr():
    from ai_edge_litert.compiled_model import CompiledModel


class SignatureGroup:
    """Some signatures of a model file.

    Attributes:
        seconds: How long it takes to compile one of the smaller signatures.
    """

    def __init__(self, compile_signatures: Callable[[Collection[str]], CompiledModel], debug: bool) -> None:
        """Create a group without signatures.

        Args:
            compile_signatures: Compiles a model with the signatures of some names.
            debug: Whether LiteRT's log goes to stderr.
        """
        self._compile = compile_signatures
        self._debug = debug
        self.seconds = math.inf
        self._model: CompiledModel | None = None
        self._names: dict[str, None] = {}  # in the order of their first use
        self._bound: dict[str, BoundSignature] = {}

    def add(self, names: Collection[str]) -> None:
        """Compile signatures, if they are not.

        Args:
            names: Their names.

        Raises:
            RefusedByLiteRt: LiteRT refuses them. Then the group has none.
        """
        if not names - self._names.keys():
            return
        wanted = dict.fromkeys([*self._names, *names])
        self.close()
        begin = time.perf_counter()
        try:
            with silenced_stderr(not self._debug):
                self._model = self._compile(wanted)
        except RefusedByLiteRt as error:
            raise (error if self._debug else error.with_reason(lambda: self._compile(wanted))) from error
        self._names = wanted
        self.seconds = min(self.seconds, (time.perf_counter() - begin) / len(wanted))

    def get(self, spec: SignatureSpec, caches: Mapping[Slot, TensorSpec]) -> BoundSignature:
        """Return a signature, and compile it if needed.

        Args:
            spec: The signature.
            caches: See `BoundSignature`.

        Returns:
            The signature and its buffers. A later call may return another one.

        Raises:
            RefusedByLiteRt: LiteRT refuses it.
        """
        if spec.name not in self._bound:
            self.add({spec.name})
            assert self._model is not None
            bound = BoundSignature(self._model, spec, caches)
            bound.silences = not self._debug
            self._bound[spec.name] = bound
        return self._bound[spec.name]

    def __len__(self) -> int:
        """The number of compiled signatures."""
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        """Whether a signature is compiled."""
        return name in self._names

    def __iter__(self) -> Iterator[BoundSignature]:
        """Yield the signatures that have been used."""
        yield from self._bound.values()

    def close(self) -> None:
        """Free the model."""
        self._bound, self._names = {}, {}
        if self._model is not None:
            with silenced_stderr(not self._debug), contextlib.closing(self._model):
                self._model = None
