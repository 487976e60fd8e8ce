"""One thread for a small model, all cores for others."""

from __future__ import annotations

from runtime_py.engines.threads import cores, default_threads


def test_small_models_run_on_one_thread() -> None:
    assert default_threads(size=10, multithread_bytes=11) == 1
    assert default_threads(size=11, multithread_bytes=11) == cores() >= 1
