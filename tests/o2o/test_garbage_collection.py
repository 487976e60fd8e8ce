"""The collector is off within, and afterwards as it was before."""

from __future__ import annotations

import gc

import pytest

from o2o import garbage_collection


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_it_is_as_before(on: bool, fails: bool) -> None:
    @garbage_collection.paused()
    def within() -> bool:
        with garbage_collection.paused():
            assert not gc.isenabled()
        if fails:
            raise ValueError("no")
        return gc.isenabled()

    (gc.enable if on else gc.disable)()
    try:
        for _ in range(2):
            if fails:
                with pytest.raises(ValueError, match="no"):
                    within()
            else:
                assert not within()
            assert gc.isenabled() is on
    finally:
        gc.enable()
