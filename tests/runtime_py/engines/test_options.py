"""Which options an engine must support."""

from __future__ import annotations

from typing import Any

import pytest

from o2o.errors import UsageError
from runtime_py.engines.options import EngineOptions


@pytest.mark.parametrize(
    ("options", "requested"),
    [
        (EngineOptions(disk_cache=None), set()),
        (EngineOptions(engine="litert", disk_cache=None), set()),
        (EngineOptions(threads=2, disk_cache=None), {"threads"}),
        (EngineOptions(buckets=(), debug=True, disk_cache=None), {"buckets", "debug"}),
    ],
)
def test_options_that_differ_from_their_default_are_requested(
    options: EngineOptions, requested: set[str]
) -> None:
    assert options.requested == requested


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"threads": value}, "threads is .*: it must be") for value in (0, -1, 1.5, True, 10**6)),
        *(({"buckets": value}, "buckets is .*: it must be") for value in ([-1], [0], "x", [1.5], 4)),
    ],
)
def test_options_that_no_engine_can_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**options, disk_cache=None)
