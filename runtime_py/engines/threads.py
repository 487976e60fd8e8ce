"""Thread count policy: how many threads a model of a given size runs fastest on."""

from __future__ import annotations

from o2o.cores import cores


def default_threads(size: int, multithread_bytes: float) -> int:
    """Return the number of threads for a model.

    Args:
        size: Bytes of the model.
        multithread_bytes: See `runtime_py.engines.registry.EngineSpec`.

    Returns:
        All cores, or 1 for a small model, whose decode step takes less time than synchronizing threads.
    """
    return cores() if size >= multithread_bytes else 1
