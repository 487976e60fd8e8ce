"""Roles of the inputs and outputs of a model file without a contract, inferred by `o2o.roles`."""

from __future__ import annotations

from o2o.errors import ModelError
from o2o.model import Model
from o2o.roles import find_roles
from o2o.signatures import find_decode


def infer_roles(model: Model) -> None:
    """Attach roles to a model without a contract. A model without signatures gets one.

    A signature that lacks a role, such as an image encoder, stays without roles if there is a decode.

    Args:
        model: A Circle or TFLite model, changed in place.

    Raises:
        ModelError: There is no decode; the message names the first role that is missing.
    """
    if not model.signatures:
        model.add_default_signature("decode")
    incomplete = [findings for findings in find_roles(model) if findings.missing()]
    for findings in incomplete:
        for value in findings.roles:
            del value.meta["role"]
    if find_decode(model) is not None:
        return
    incomplete.sort(key=lambda findings: not findings.caches)  # the nearest to a decode comes first
    for findings in incomplete:
        raise ModelError(f"the model has no o2o.contract; {findings.signature.name}: {findings.missing()[0]}")
    raise ModelError(
        "no signature reads one token and takes KV caches: merge prefill and decode with merge.circles.py"
    )
