"""The machine of a measurement."""

from __future__ import annotations

from pathlib import Path

from runtime_py.benchmark.machine import processor_cache, processor_name


def test_the_largest_cache(tmp_path: Path) -> None:
    for number, size in enumerate(("32K", "1M", "36608K", "512")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert processor_cache(tmp_path) == 36608 << 10
    assert processor_cache(tmp_path / "none") == 0


def test_the_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Fast CPU 9000\n\nmodel name\t: Other\n")
    assert processor_name(cpuinfo) == "Fast CPU 9000"
    assert processor_name(tmp_path / "none")
