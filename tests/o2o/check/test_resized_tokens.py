"""A row that differs is found, in whichever chunk it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o.check.resized_tokens import check_resized
from o2o.errors import ModelError
from tests.o2o.window_graphs import window_model


def test_another_number_of_one_token() -> None:
    before, after = window_model(lengths=(6,)), window_model(lengths=(3,))
    sentence = check_resized(before, after, {"prefill_3": "prefill_6"}, 1e-4)
    assert sentence.startswith("checked on numpy: ")
    steps = after.graphs[0].initializers["steps"]
    steps.const_value = ir.Tensor(np.int32([0, 1, 3]), name="steps")
    with pytest.raises(ModelError, match="logits of prefill_3 differs at position 0"):
        check_resized(before, after, {"prefill_3": "prefill_6"}, 1e-4)
