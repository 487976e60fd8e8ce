"""Import `onnx_ir` without SymPy, which it needs only for arithmetic on symbolic dimensions.

SymPy takes longer to import than the rest of `onnx_ir` (see `python -X importtime -c 'import onnx_ir'`), and
every stage of a pipe starts once. During the import of `onnx_ir` a stand-in replaces `sympy`. Its functions
import the real module when they are called. Afterwards `import sympy` imports the real module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class _LazySympy(ModuleType):
    """A stand-in for SymPy. During the import of `onnx_ir` its attributes are functions that import SymPy."""

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
    """Finds `onnx_ir` as usual, but replaces `sympy` by the stand-in while the module is executed."""

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
    """Make every later import of `onnx_ir` do without `sympy`, unless that is imported already."""
    sys.meta_path.insert(0, _Finder())
