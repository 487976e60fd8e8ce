"""The search: changes are tried on the smallest model so far, until none of them helps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from o2o import formats
from o2o.cli.text import counted
from o2o.errors import O2oError
from o2o.formats.onnx_writer import inline
from o2o.formats.tensors import stored_bytes
from o2o.model import Model, inner_graphs
from o2o.reduction import changes
from o2o.reduction.ddmin import ddmin
from o2o.reduction.failing_command import FailingCommand
from o2o.streams import open_file
from o2o.verifier.verify import verify

T = TypeVar("T")
Change = Callable[[Model], object]
"""Changes a model in place. False means that it does not suit the model."""
SIZES = (1, 2, 4, 8)
"""The sizes that dimensions are shrunk to."""
MAX_SINGLE = 500
"""Operators beyond which they are not bypassed one by one."""


class Reducer:
    """Makes a model smaller while a command fails for it.

    Attributes:
        smallest: The file of the smallest model so far.
        operators: Its number of operators.
        command: Runs the command.
    """

    def __init__(
        self,
        model: Model,
        folder: Path,
        command: FailingCommand,
        seed: int,
        progress: Callable[[Reducer], None],
    ) -> None:
        """Write the original into a folder.

        Args:
            model: The original. It is not changed.
            folder: For the files of models; it must exist as long as this object.
            command: Runs the command.
            seed: For random weights.
            progress: Called after each run.
        """
        self.command, self._folder, self._seed, self._progress = command, folder, seed, progress
        self._suffix = f".{model.format}"
        self.smallest = folder / f"smallest{self._suffix}"
        inline(model)
        formats.save(model, self.smallest)
        self.operators = _count(model)
        self._errors = _codes(self.smallest)
        self._seen = {_digest(self.smallest)}

    def run(self) -> None:
        """Try all changes until none helps. `smallest` is a complete file at any time.

        Raises:
            UsageError: See `FailingCommand`.
        """
        while True:
            before = _digest(self.smallest)
            self._signatures()
            for index in self._entry_graphs():
                self._operators(index)
                self._outputs(index)
                self._bypass(index)
                self._inputs(index)
                self._dimensions(index)
            self._attempt(changes.drop_metadata)
            self._attempt(changes.drop_roles)
            if _digest(self.smallest) == before:
                break
        for index in self._entry_graphs():
            self._weights(index)  # once: each time the numbers would be others

    def describe(self) -> str:
        """Describe the smallest model.

        Returns:
            Its operators and bytes.
        """
        return f"{counted(self.operators, 'operator')}, {stored_bytes(self._model()):,} bytes of constants"

    # ---- steps, each for one graph by its number ----------------------------------------------------

    def _signatures(self) -> None:
        names = [signature.name for signature in self._model().signatures]
        self._minimize(names, lambda model, some: changes.keep_signatures(model, some))

    def _operators(self, index: int) -> None:
        def keep(model: Model, positions: list[int]) -> None:
            changes.keep_operators(model, model.graphs[index], set(positions))

        self._minimize(list(range(len(self._model().graphs[index]))), keep)

    def _outputs(self, index: int) -> None:
        def keep(model: Model, positions: list[int]) -> None:
            changes.keep_outputs(model, model.graphs[index], positions)

        self._minimize(list(range(len(self._model().graphs[index].outputs))), keep)

    def _bypass(self, index: int) -> None:
        def change(model: Model, position: int) -> bool:
            return changes.bypass(model.graphs[index], position)

        count = len(self._model().graphs[index])
        for position in reversed(range(count if count <= MAX_SINGLE else 0)):
            self._attempt(partial(change, position=position))

    def _inputs(self, index: int) -> None:
        def change(model: Model, position: int) -> bool:
            return changes.input_to_constant(model, model.graphs[index], position, self._seed)

        for position in reversed(range(len(self._model().graphs[index].inputs))):
            self._attempt(partial(change, position=position))

    def _dimensions(self, index: int) -> None:
        def change(model: Model, old: int, new: int) -> None:
            changes.shrink_dimension(model.graphs[index], old, new)

        for old in changes.dimensions(self._model().graphs[index]):
            sizes = sorted({size for size in (*SIZES, old // 2) if size < old})
            any(self._attempt(partial(change, old=old, new=new)) for new in sizes)

    def _weights(self, index: int) -> None:
        """Replace all weights by random numbers, or all but a few."""
        names = changes.replaceable_weights(self._model().graphs[index])

        def change(model: Model, originals: list[str]) -> None:
            others = [name for name in names if name not in set(originals)]
            changes.seeded_weights(model.graphs[index], others, self._seed)

        if names and not self._attempt(partial(change, originals=[])):
            self._minimize(names, change)

    # ---- attempts -----------------------------------------------------------------------------------

    def _model(self) -> Model:
        return formats.load(self.smallest)

    def _entry_graphs(self) -> list[int]:
        """The numbers of the graphs that no operator runs, the last first: graphs may disappear."""
        model = self._model()
        run = {id(inner) for graph in model.graphs for node in graph for inner in inner_graphs(node)}
        return [index for index, graph in enumerate(model.graphs) if id(graph) not in run][::-1]

    def _minimize(self, items: list[T], keep: Callable[[Model, list[T]], object]) -> None:
        """Keep a small subset of items. All attempts start from the same model."""
        if len(items) < 2:
            return
        base = self._folder / f"base{self._suffix}"
        base.unlink(missing_ok=True)
        os.link(self.smallest, base)
        ddmin(items, lambda some: self._attempt(lambda model: keep(model, some), base))
        base.unlink()

    def _attempt(self, change: Change, base: Path | None = None) -> bool:
        """Whether the command still fails for a changed model, which is then the smallest."""
        candidate = self._folder / f"candidate{self._suffix}"
        try:
            model = formats.load(base or self.smallest)
            if change(model) is False:
                return False
            changes.clean(model)
            if not _count(model):
                return False
            formats.save(model, candidate)
            if (digest := _digest(candidate)) in self._seen or _codes(candidate) - self._errors:
                return False
        except (O2oError, ValueError, IndexError, KeyError, AssertionError, TypeError):
            return False  # the change does not suit this model
        self._seen.add(digest)
        fails = self.command.still_fails(candidate)
        if fails:
            os.replace(candidate, self.smallest)
            self.operators = _count(model)
        self._progress(self)
        return fails


def _count(model: Model) -> int:
    return sum(len(graph) for graph in model.graphs)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _codes(path: Path) -> set[str]:
    """The codes of a file's errors: a smaller model must not break other rules than the original."""
    return {issue.code for issue in verify(open_file(path)) if issue.severity == "error"}
