"""The ATTENTION operator's operands by name, and its dimensions.

Their order is that of Samsung ONE's `circle_custom::attention`; their meaning is in `o2o.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.model import shape_of


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
        """Raises ModelError when `node` lacks an operand that every attention has."""
        inputs = [*node.inputs, *[None] * 11][:11]
        if any(value is None for value in inputs[:5]):
            raise ModelError(f"ATTENTION {node.outputs[0].name} lacks its input or one of its weights")
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
        """The cache's: as its role says, else as its shape must mean. Raises ModelError if neither tells."""
        assert self.k_cache is not None
        role = role_of(self.k_cache)
        if role is not None and role.layout is not None:
            return role.layout
        _, first, second, _ = shape_of(self.k_cache)
        if first == self.K != second:
            return "BNTH"
        if second == self.K != first:
            return "BTNH"
        raise ModelError(
            f"cannot tell heads from tokens in the cache {self.k_cache.name} {list(shape_of(self.k_cache))}: "
            "the file has no o2o.contract that says its layout"
        )
