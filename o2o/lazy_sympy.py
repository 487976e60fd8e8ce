"""Importing `onnx_ir` without SymPy, which it needs only for arithmetic on symbolic dimensions.

SymPy takes longer to import than all the rest of it (`python -X importtime -c 'import onnx_ir'` shows), and
every stage of a pipe starts once.
While `onnx_ir` is imported, a stand-in answers for `sympy`; what it hands out loads the real module when it
is first used. It is not left in `sys.modules`: whoever imports SymPy gets SymPy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module that has not been imported: its attributes are functions that import it."""

    loading = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.loading:
            return self._function(name)
        return getattr(importlib.import_module(self.__name__), name)

    def _function(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call


def import_onnx_ir() -> None:
    """Import `onnx_ir`, and not `sympy` unless somebody did already."""
    if "sympy" in sys.modules or "onnx_ir" in sys.modules:
        return
    later = sys.modules["sympy"] = _Later("sympy")
    try:
        importlib.import_module("onnx_ir")
    finally:
        later.loading = False
        del sys.modules["sympy"]
