"""Import of `onnx_ir` without SymPy, which it needs only for arithmetic on symbolic dimensions.

SymPy takes longer to import than the rest of `onnx_ir` (see `python -X importtime -c 'import onnx_ir'`), and
every stage of a pipe imports it. While `onnx_ir` is imported, a placeholder stands for `sympy`. Its functions
import the real module when they are first called. The placeholder is then removed from `sys.modules`, so that
later imports get SymPy itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class _LazySympy(ModuleType):
    """Stands for a module that has not been imported: its attributes are functions that import it."""

    loading = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.loading:
            return self._function(name)
        return getattr(_sympy(), name)

    def _function(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(_sympy(), name)(*args, **kwargs)

        return call


def _sympy() -> ModuleType:
    import sympy

    return sympy


class _Finder:
    """Finds `onnx_ir` as usual; a stand-in is `sympy` while the module runs."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name != "onnx_ir" or "sympy" in sys.modules:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            stand_in = sys.modules["sympy"] = _LazySympy("sympy")
            try:
                execute(module)
            finally:
                stand_in.loading = False
                del sys.modules["sympy"]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Import `onnx_ir`, whenever that will be, without `sympy`, unless somebody imported that already."""
    sys.meta_path.insert(0, _Finder())
