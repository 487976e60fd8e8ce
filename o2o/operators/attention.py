"""The ATTENTION operator's operands by name, and its dimensions.

Their order is that of Samsung ONE's `circle_custom::attention`; their meaning is in
`o2o.operators.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.model import DOMAIN, shape_of

WEIGHTS = (1, 2, 3, 4)  # the numbers of the operands wq, wk, wv and wo
CACHES = (8, 9)  # the numbers of the operands k_cache and v_cache
POSITION = 10  # and of pos


def is_attention(node: ir.Node) -> bool:
    """Whether `node` is this operator, rather than a custom one of its name."""
    return node.domain == DOMAIN and node.op_type == "ATTENTION"


def takes_as_cache(node: ir.Node, operand: int) -> bool:
    """Whether the operand of that number is a cache, which ATTENTION takes in either layout."""
    return is_attention(node) and operand in CACHES


def writes_cache(node: ir.Node) -> bool:
    """Whether `node` is an ATTENTION that updates caches in place."""
    return is_attention(node) and any(
        operand in CACHES and value is not None for operand, value in enumerate(node.inputs)
    )


@dataclass
class Attention:
    """One ATTENTION node's operands, in order."""

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
        """Raises ModelError when `node` lacks an operand that it must have."""
        inputs = [*node.inputs, *[None] * 11][:11]
        if any(value is None for value in inputs[:5]):
            raise ModelError(f"ATTENTION {node.outputs[0].name} lacks its input or one of its weights")
        if (inputs[8] is None) != (inputs[9] is None):
            raise ModelError(f"ATTENTION {node.outputs[0].name} has one cache, where two belong together")
        return cls(*inputs)  # type: ignore[arg-type]

    def operands(self) -> list[ir.Value | None]:
        return list(vars(self).values())

    @property
    def T(self) -> int:
        return shape_of(self.x)[-2]

    @property
    def H(self) -> int:
        """Head dimension: that of the cache, else that of the rotation."""
        for value in (self.k_cache, self.cos):
            if value is not None:
                return shape_of(value)[-1]
        raise ModelError(
            f"ATTENTION on {self.x.name} has neither cache nor rotation to tell its head dimension"
        )

    @property
    def N(self) -> int:
        return shape_of(self.wq)[0] // self.H

    @property
    def K(self) -> int:
        return shape_of(self.wk)[0] // self.H

    @property
    def S(self) -> int:
        """Capacity of the cache; without one, the tokens themselves."""
        if self.k_cache is None:
            return self.T
        return shape_of(self.k_cache)[1 if self.layout == "BTNH" else 2]

    @property
    def layout(self) -> Layout:
        """Both caches': as their roles say, else as their shape must mean. Raises ModelError else."""
        assert self.k_cache is not None
        shape = shape_of(self.k_cache)
        roles = [role_of(cache) for cache in (self.k_cache, self.v_cache) if cache is not None]
        told = {role.layout for role in roles if role is not None and role.layout is not None}
        fitting = [
            layout
            for layout in get_args(Layout)
            if len(shape) == 4 and shape[layout.index("N")] == self.K and told <= {layout}
        ]
        if len(fitting) == 1:
            found: Layout = fitting[0]
            return found
        contract = f"says {' and '.join(sorted(told))}" if told else "says nothing"
        cache = f"{self.k_cache.name} {list(shape)} of {self.K} heads"
        raise ModelError(f"cannot tell heads from tokens in the cache {cache}: its o2o.contract {contract}")
