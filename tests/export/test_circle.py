from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import tico
import torch
from transformers import LlamaConfig

from export import fx_passes
from export.circle import compile_graph
from export.model import LanguageModel
from export.modules import ConcatenatedCacheModule, ExportModule, PrefillModule, StaticCacheModule
from o2o.errors import ModelError
from tests.checkpoints import GROUPED

FORMS: dict[str, Callable[[LanguageModel], ExportModule]] = {
    "prefill": lambda model: PrefillModule(model, 8),
    "prefill on caches": lambda model: StaticCacheModule(model, "prefill_4", 4, 16),
    "decode concat": lambda model: ConcatenatedCacheModule(model, 15),
    "decode static": lambda model: StaticCacheModule(model, "decode", 1, 16),
}


def graph(form: str, layers: int = 1) -> ExportModule:
    return FORMS[form](LanguageModel(LlamaConfig(**GROUPED | {"num_hidden_layers": layers})))


class Counts:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = self.made = 0
        for name, count in (("_recompile_later", "asked"), ("_recompile", "made")):
            monkeypatch.setattr(fx_passes, name, self._counted(getattr(fx_passes, name), count))
        monkeypatch.setattr(fx_passes, "_is_known", lambda: True)

    def _counted(self, function: Callable[..., Any], count: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(module: torch.fx.GraphModule) -> Any:
            setattr(self, count, getattr(self, count) + 1)
            return function(module)

        return counted


def compile_plainly(graph: ExportModule) -> bytes:
    """What torch and TICO do by themselves."""
    with torch.no_grad():
        program = torch.export.export(graph.eval(), graph.example(), strict=False)
    config = tico.get_default_config()
    config.set("circle_optimize", False)
    return tico.convert_from_exported_program(program, config=config).circle_binary


@pytest.mark.parametrize("form", FORMS)
def test_no_byte_is_changed_by_what_makes_it_quick(form: str) -> None:
    assert compile_graph(graph(form)) == compile_plainly(graph(form))


def test_work_per_layer_does_not_grow_with_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """TICO's passes go over the whole graph, so there may be no more of them for more layers."""
    counts = []
    for layers in (1, 3):
        with monkeypatch.context() as patch:
            count = Counts(patch)
            compile_graph(graph("decode static", layers))
            counts.append((count.asked, count.made))
    assert counts[0] == counts[1]
    asked, made = counts[0]
    assert asked > 100
    assert made < 5


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_is_paused(on: bool, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    traced = graph("prefill")
    forward = traced.forward

    def watched(*args: Any) -> Any:
        seen.append(gc.isenabled())
        if fails:
            raise ValueError("no")
        return forward(*args)

    monkeypatch.setattr(traced, "forward", watched)
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ModelError, match="cannot trace prefill") if fails else contextlib.nullcontext():
            compile_graph(traced)
        assert gc.isenabled() is on
    finally:
        gc.enable()
    assert seen == [False]
