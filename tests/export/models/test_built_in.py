"""Which model types this package defines itself."""

from __future__ import annotations

import pytest

from export.models import built_in


def test_the_file_of_a_model() -> None:
    path = built_in("openelm")
    assert path is not None
    assert path.name == "openelm.py"


@pytest.mark.parametrize("model_type", ["llama", "__init__", "../models/openelm", "", None, 3])
def test_other_models(model_type: object) -> None:
    assert built_in(model_type) is None
