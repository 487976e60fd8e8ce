"""Objects that change in a forked child."""

from __future__ import annotations

import gc
import weakref

from runtime_py import forks
from tests.runtime_py.forking import in_child


class Watched:
    in_child = False

    def after_fork_in_child(self) -> None:
        self.in_child = True


def test_the_child_is_told_and_the_parent_is_not() -> None:
    watched = Watched()
    forks.watch(watched)

    def child() -> None:
        assert watched.in_child

    in_child(child)
    assert not watched.in_child


def test_watching_keeps_nothing_alive() -> None:
    watched = Watched()
    forks.watch(watched)
    reference = weakref.ref(watched)
    del watched
    gc.collect()
    assert reference() is None


def test_an_object_that_is_never_freed() -> None:
    def child() -> None:
        watched = Watched()
        reference = weakref.ref(watched)
        forks.never_free(watched)
        del watched
        gc.collect()
        assert reference() is not None

    in_child(child)
