from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.peers.processor import processor


@pytest.mark.parametrize(
    ("text", "sets", "name"),
    [
        (
            "model name\t: AMD EPYC\nflags\t\t: fpu avx2 fma avx512f avx512_vnni avx_vnni\n",
            ("AVX2", "FMA", "AVX-VNNI", "AVX512F", "AVX512-VNNI"),
            "AMD EPYC, AVX512-VNNI",
        ),
        ("model name : AMD EPYC\nflags : sse2 avx2 f16c\n", ("AVX2", "F16C"), "AMD EPYC, AVX2"),
        ("Features\t: fp asimd asimddp i8mm\n", ("NEON", "NEON-DOTPROD", "NEON-I8MM"), "NEON-I8MM"),
        ("model name : old\nflags : sse2\n", (), "old"),
    ],
)
def test_instruction_sets(tmp_path: Path, text: str, sets: tuple[str, ...], name: str) -> None:
    """The name ends with the instruction set that selects the kernels."""
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    found = processor(file)
    assert found.instruction_sets == sets
    assert str(found).startswith(f"{os.cpu_count()} x ")
    assert str(found).endswith(name)
    assert found.as_json()["instruction_sets"] == sets
