"""The processor that measurements were made on, and its instruction sets."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512F",
    "avx512bw": "AVX512BW",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON-DOTPROD",
    "i8mm": "NEON-I8MM",
    "sve": "SVE",
}
"""Instruction sets for which the measured engines have kernels of their own, by flag of /proc/cpuinfo."""
DECISIVE = ("AMX-INT8", "AVX512-VNNI", "AVX-VNNI", "AVX512F", "AVX2", "NEON-I8MM", "NEON-DOTPROD", "NEON")
"""Instruction sets that select the kernels for int8 and int4, the fastest first."""


@dataclass(frozen=True)
class Processor:
    """A processor.

    Attributes:
        model: Its name, such as `AMD EPYC`.
        cores: The number of logical cores.
        instruction_sets: Names from `INSTRUCTION_SETS`.
    """

    model: str
    cores: int
    instruction_sets: tuple[str, ...]

    def __str__(self) -> str:
        """The number of cores, the name, and the instruction set that selects the kernels."""
        best = next((name for name in DECISIVE if name in self.instruction_sets), "")
        return f"{self.cores} x {self.model}{f', {best}' if best else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return the processor for JSON.

        Returns:
            The attributes by name.
        """
        return asdict(self)


def processor(cpuinfo: Path = CPUINFO) -> Processor:
    """Describe the processor of this machine.

    Args:
        cpuinfo: The kernel's description.

    Returns:
        The processor.
    """
    lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
    fields = {key.strip(): value.strip() for key, value in lines}
    flags = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}
    sets = tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags)
    return Processor(fields.get("model name", os.uname().machine), os.cpu_count() or 1, sets)
