"""ATTENTION and its parts compute the same, by the reference."""

from __future__ import annotations

import numpy as np
import pytest

from o2o.operators import reference
from o2o.rewriting.attention.expand_attention import expand_attentions
from tests.o2o.fused_graphs import Form, attention, feeds_at
from tests.o2o.graphs import INT32, operators
from tests.tolerances import assert_close

FORMS = {
    "decode": Form(layout="BNTH"),
    "AI Edge's layout": Form(T=2, layout="BTNH"),
    "prefill with caches": Form(T=3, layout="BNTH", pos=(3,), pos_dtype=INT32),
    "without position": Form(T=2, layout="BNTH", pos=None),
    "without rotation": Form(layout="BNTH", rotate=False),
    "masked": Form(T=2, layout="BNTH", mask=(1, 1, 2, 7)),
    "without caches": Form(T=4, S=4, pos=None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_parts_compute_attention(form: Form) -> None:
    model, expanded = attention(form), attention(form)
    assert expand_attentions(expanded, expanded.graphs[0]) == 1
    names = operators(expanded)
    assert "ATTENTION" not in names
    assert names["o2o.attention"] == 1
    assert names["FULLY_CONNECTED"] == 4
    assert names["ROPE"] == 2 * form.rotate
    assert names["DYNAMIC_UPDATE_SLICE"] == 2 * bool(form.layout)
    for position in (0, 3) if form.layout and form.pos else (0,):
        feeds = feeds_at(model, position)
        copies = {name: array.copy() for name, array in feeds.items()}
        wanted = reference.run_graph(model.graphs[0], copies)["y"]  # updates the caches in `copies`
        results = reference.run_graph(expanded.graphs[0], feeds)
        assert_close(results.pop("y"), wanted)
        assert len(results) == 2 * bool(form.layout)
        for name, rows in results.items():
            np.testing.assert_array_equal(rows, copies[name.replace("present", "past")])


def test_caches_become_outputs_of_the_signature() -> None:
    model = attention(FORMS["decode"])
    expand_attentions(model, model.graphs[0])
    assert list(model.signatures[0].outputs) == ["y", "present_key_0", "present_value_0"]
