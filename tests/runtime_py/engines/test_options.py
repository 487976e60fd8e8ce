"""Which options an engine must support."""

from __future__ import annotations

import pytest

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
