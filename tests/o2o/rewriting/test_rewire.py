"""Setting graph outputs and keeping signatures in step."""

from __future__ import annotations

from o2o.rewriting.rewire import set_io_values, sync_signatures
from tests.o2o.graphs import linear


def test_new_ends_get_names_of_their_own_in_signatures() -> None:
    model = linear()
    graph, signature = model.graphs[0], model.signatures[0]
    y, z = graph.outputs
    signature.outputs = {"z": y, "first": z}
    weight = graph.initializers["weight"]
    weight.name = "z"
    set_io_values(graph, "output", [weight, z, y])
    sync_signatures(model, graph)
    assert signature.outputs == {"first": z, "z": y}, "what it did not name it need not name now"
    sync_signatures(model, graph, name_all=True)
    assert signature.outputs == {"z_1": weight, "first": z, "z": y}
    assert list(signature.outputs) == ["z_1", "first", "z"]
