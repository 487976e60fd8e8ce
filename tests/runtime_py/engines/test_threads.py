"""One thread for a small model, all cores for others."""

from __future__ import annotations

from o2o.cores import cores
from runtime_py.engines.threads import default_threads


def test_small_models_run_on_one_thread() -> None:
    assert default_threads(size=10, multithread_bytes=11) == 1
    assert default_threads(size=11, multithread_bytes=11) == cores() >= 1
