"""What an export needs is printed in numbers, and checked before the export begins."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from export import resources
from export.resources import available_memory, check_disk, estimate_needs, format_bytes, processes_that_fit
from o2o.errors import O2oError
from o2o.weights.checkpoint import open_checkpoint
from tests.checkpoints import GROUPED, write_checkpoint

Disk = namedtuple("Disk", "total used free")
Memory = namedtuple("Memory", "available")


def test_parameters_are_counted_once(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = write_checkpoint(tmp_path, **GROUPED, dtype="bfloat16")
    tensors = open_checkpoint(directory).tensors
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    count = sum(parameter.numel() for parameter in model.parameters())
    found = estimate_needs(tensors, layers=3, graphs=2, dtype="float32", embed=False)
    assert (found.parameters, found.stored) == (count, 2 * count)
    assert found.bound == 4 * count + found.graphs
    assert estimate_needs(tensors, 3, 2, "float32", embed=True).graphs == 2 * 4 * count + found.graphs
    assert estimate_needs(tensors, 3, 2, "float16", embed=False).bound == 2 * count + found.graphs


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk(0, 0, 3_000_000_000))
    check_disk(tmp_path / "not" / "there", 3_000_000_000, "it")
    with pytest.raises(O2oError, match=r"the model needs 4\.40 GB on disk, .*there has 3\.00 GB free: make"):
        check_disk(tmp_path / "not" / "there", 4_400_000_000, "the model")


def test_memory_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 1_300_000_000)
    assert [processes_that_fit(500_000_000, wanted) for wanted in (1, 2, 8)] == [1, 2, 2]
    with pytest.raises(O2oError, match=r"takes about 2\.00 GB of memory, and 1\.30 GB are free"):
        processes_that_fit(2_000_000_000, 1)


def test_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(5_000))
    for limit, expected in (("max", 5_000), ("8000", 5_000), ("4000", 3_000)):
        files = {"memory.max": limit, "memory.current": "1000"}
        monkeypatch.setattr(Path, "read_text", lambda path, files=files: files[path.name] + "\n")
        assert available_memory() == expected

    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert available_memory() == 5_000


def test_sizes_read_well() -> None:
    assert [format_bytes(n) for n in (4_400_193_536, 50_000_000, 1_400_000, 0)] == [
        "4.40 GB",
        "0.05 GB",
        "1.4 MB",
        "0.0 MB",
    ]
