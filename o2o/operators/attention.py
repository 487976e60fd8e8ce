"""The operands of Circle's ATTENTION by name, and its dimensions.

Operand order: Samsung ONE's `circle_custom::attention`. Meaning: `o2o.operators.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.model import DOMAIN, shape_of

WEIGHTS = (1, 2, 3, 4)  # operands wq, wk, wv and wo
MASK = 7  # operand mask
CACHES = (8, 9)  # operands k_cache and v_cache
POSITION = 10  # operand pos


def is_attention(node: ir.Node) -> bool:
    """Whether `node` is the builtin ATTENTION, not a custom operator of that name.

    Args:
        node: Any node.

    Returns:
        True for ATTENTION.
    """
    return node.domain == DOMAIN and node.op_type == "ATTENTION"


def takes_as_cache(node: ir.Node, operand: int) -> bool:
    """Whether an operand is a cache of ATTENTION, which takes caches in either layout.

    Args:
        node: Any node.
        operand: The number of the operand.

    Returns:
        True for the caches of ATTENTION.
    """
    return is_attention(node) and operand in CACHES


def writes_cache(node: ir.Node) -> bool:
    """Whether `node` is an ATTENTION that updates caches in place.

    Args:
        node: Any node.

    Returns:
        True for ATTENTION with caches.
    """
    return is_attention(node) and any(
        operand in CACHES and value is not None for operand, value in enumerate(node.inputs)
    )


@dataclass
class Attention:
    """The operands of one ATTENTION, in order. Optional operands are None."""

    x: ir.Value
    wq: ir.Value
    wk: ir.Value
    wv: ir.Value
    wo: ir.Value
    cos: ir.Value | None = None
    sin: ir.Value | None = None
    mask: ir.Value | None = None
    k_cache: ir.Value | None = None
    v_cache: ir.Value | None = None
    pos: ir.Value | None = None

    @classmethod
    def of(cls, node: ir.Node) -> Attention:
        """Read the operands of a node.

        Args:
            node: An ATTENTION.

        Returns:
            Its operands.

        Raises:
            ModelError: A required operand is absent, or one of two caches is.
        """
        inputs = [*node.inputs, *[None] * 11][:11]
        if any(value is None for value in inputs[:5]):
            raise ModelError(f"ATTENTION {node.outputs[0].name} has no input or lacks a weight matrix")
        if (inputs[8] is None) != (inputs[9] is None):
            raise ModelError(f"ATTENTION {node.outputs[0].name} has one cache: it needs both or none")
        return cls(*inputs)  # type: ignore[arg-type]

    def operands(self) -> list[ir.Value | None]:
        """Return the operands in the order of ATTENTION.

        Returns:
            Eleven operands, None for each that is absent.
        """
        return list(vars(self).values())

    @property
    def T(self) -> int:
        return shape_of(self.x)[-2]

    @property
    def H(self) -> int:
        """The head dimension, from the cache or else from the rotation table."""
        for value in (self.k_cache, self.cos):
            if value is not None:
                return shape_of(value)[-1]
        raise ModelError(
            f"ATTENTION on {self.x.name} has neither cache nor rotation table: its head dimension is unknown"
        )

    @property
    def N(self) -> int:
        return shape_of(self.wq)[0] // self.H

    @property
    def K(self) -> int:
        return shape_of(self.wk)[0] // self.H

    @property
    def S(self) -> int:
        """The capacity of the cache. Without a cache, T."""
        if self.k_cache is None:
            return self.T
        return shape_of(self.k_cache)[1 if self.layout == "BTNH" else 2]

    @property
    def layout(self) -> Layout:
        """The layout of both caches: by their roles, else the only one that fits their shape."""
        assert self.k_cache is not None
        shape = shape_of(self.k_cache)
        roles = [role_of(cache) for cache in (self.k_cache, self.v_cache) if cache is not None]
        declared = {role.layout for role in roles if role is not None and role.layout is not None}
        fitting = [
            layout
            for layout in get_args(Layout)
            if len(shape) == 4 and shape[layout.index("N")] == self.K and declared <= {layout}
        ]
        if len(fitting) == 1:
            (layout,) = fitting
            return layout
        contract = f"declares {' and '.join(sorted(declared))}" if declared else "declares none"
        cache = f"{self.k_cache.name} {list(shape)} of {self.K} heads"
        raise ModelError(f"the layout of the cache {cache} is ambiguous: its o2o.contract {contract}")
