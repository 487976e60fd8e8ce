"""The command that checks families: its cases, stored results, table, and what it counts as different."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from export.config import CheckpointConfig
from export.preflight import reasons
from tests.families import results, table
from tests.families.__main__ import line, main, selected
from tests.families.cases import CASES, CONTEXT, Case
from tests.families.check import _other_choice
from tests.families.results import Result, Run

FAMILIES = {
    *("llama", "smollm3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "qwen2", "qwen3", "mistral"),
    *("ministral", "olmo", "olmo2", "olmo3", "stablelm", "gpt_neox", "gpt2", "gpt_neo", "gptj", "opt"),
    *("falcon", "bloom", "mpt", "granite", "starcoder2", "cohere", "cohere2", "glm", "glm4", "exaone4"),
    *("helium", "nemotron", "persimmon", "codegen", "gpt_bigcode", "seed_oss", "arcee", "apertus"),
}


def test_every_family_has_a_case() -> None:
    assert {case.model_type for case in CASES} >= FAMILIES
    assert len({case.name for case in CASES}) == len(CASES)
    assert 8 <= len(selected(None, ci=True)) <= 16


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_planned(case: Case) -> None:
    config = CheckpointConfig({"model_type": case.model_type, **case.fields}, "folder")
    assert list(reasons(config)) == []
    beyond = {name for name in ("window", "beyond") if name in case.name}
    assert "window" in beyond or (config.sliding_window or CONTEXT) >= CONTEXT
    assert "beyond" in beyond or (config.positions or CONTEXT) >= CONTEXT


def test_a_part_of_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert [case.name for case in selected(["falcon"], ci=False)] == ["falcon-7b", "falcon-40b", "falcon-rw"]
    assert main(["--only", "no-such-family"]) == 2
    assert capsys.readouterr().err.startswith("families: no such case: choose from llama 2,")


def a_result(error: str = "") -> Result:
    runs = [Run("circle", "litert", 1e-5, 1e-6, error), Run("circle int8", "onnx", 0.3, 0.05)]
    return Result("gpt2", 4, 4, runs, 2.0)


def test_results_are_stored_until_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "gpt2")
    assert results.stored(tmp_path, case) is None
    results.store(tmp_path, case, a_result())
    assert results.stored(tmp_path, case) == a_result()
    changed = dataclasses.replace(case, fields=dict(case.fields) | {"n_head": 3})
    assert results.stored(tmp_path, changed) is None
    monkeypatch.setattr(results, "SOURCES", ("export",))
    assert results.stored(tmp_path, case) is None


def test_a_result_passes_if_all_runs_agree_and_all_attention_is_fused() -> None:
    assert a_result().passed
    assert not a_result("off by 1").passed
    assert not dataclasses.replace(a_result(), fused=3).passed
    assert not dataclasses.replace(a_result(), runs=[]).passed
    assert not dataclasses.replace(a_result(), error="killed").passed
    text = line(a_result("off by 1"))
    assert text.startswith("FAIL gpt2")
    assert "circle on litert: off by 1" in text


def test_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}old{table.END}after\n")
    case = next(case for case in CASES if case.name == "gpt2")
    table.write([case], [a_result("off by 1")], page)
    text = page.read_text()
    assert "| gpt2 | `gpt2` | 4 of 4 | ONNX Runtime | 1e-05 | 0.05 |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text


def test_another_token_counts_unless_the_two_best_are_very_close() -> None:
    theirs = np.array([[0.0, 1.0, 0.99995], [3.0, 0.0, 1.0]], np.float32)
    assert _other_choice(theirs, theirs, 5) == ""
    near = theirs.copy()
    near[0] = 0.0, 0.99996, 0.99997
    assert _other_choice(near, theirs, 5) == ""
    near[1] = 1.9, 0.0, 2.0
    assert _other_choice(near, theirs, 5) == "another token at step 1 after a prompt of 5"
