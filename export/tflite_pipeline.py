"""A checkpoint as one TFLite file with the signatures of AI Edge: as shell commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import shell
from export.jobs import jobs
from o2o.errors import ModelError, UsageError
from o2o.operators.causal_attention import adaptive_blocks
from o2o.quantization.recipes import NONE, find

PIPE = """
merge.circles.py {graphs} \\
  | fuse.rms_norm.py | fuse.rope.py | gc.py {quantize}\\
  | lower.litert.py | {sign} {bucket}{wrap}| bind.weights.py -o model.tflite
"""

QUANTIZE = """| quantize.weights.py --recipe {recipe} {report}| fuse.fc.py """

FLASH = "flash"  # of export's --attn-implementation

# What files are called by, as AI Edge's converters have it.
TAGS = {
    "none": "f32",
    "float16": "f16",
    "dynamic_int8": "q8",
    "weight_only_int8": "wi8",
    "dynamic_int4_block32": "q4_block32",
    "dynamic_int4_block128": "q4_block128",
    "dynamic_int4_block32_head": "q4_block32_head",
}
BYTES = {"none": 4.0, "float16": 2.0}  # that a parameter takes; with other recipes little more than 1


@dataclass(frozen=True)
class Conversion:
    """checkpoint: its folder. capacity: S, tokens that the caches hold. lengths: tokens of the prefills.
    recipe: of `o2o.quantization.recipes`, or another name for one. flash: attention in blocks of q_block
    queries by kv_block keys, where one is None by `adaptive_blocks`, for the longest prefill.
    hlfb: wrap attention and norms in composites. prefill_logits: let prefills give logits. buckets: the
    capacities of further decodes. report: where to write what quantising cost.

    Raises UsageError for an unknown recipe, and for lengths that make no package.
    """

    checkpoint: Path
    capacity: int
    lengths: Sequence[int]
    recipe: str = "none"
    flash: bool = False
    q_block: int | None = None
    kv_block: int | None = None
    hlfb: bool = False
    prefill_logits: bool = False
    report: Path | None = None
    buckets: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", find(self.recipe).name)
        if not self.lengths or min(self.lengths) < 2:
            raise UsageError("a prefill reads 2 tokens or more: decode is what reads one")
        if self.buckets and not 0 < min(self.buckets) <= max(self.buckets) < self.capacity:
            told = ",".join(map(str, self.buckets))
            raise UsageError(f"{told}: decode's other capacities are below the {self.capacity} of its own")
        jobs(self.capacity, self.lengths, "static")

    def size(self, parameters: int) -> int:
        """About how many bytes the file takes, of a model with that many parameters."""
        return int(parameters * BYTES.get(self.recipe, 1.1))

    @property
    def tag(self) -> str:
        """`q8_ekv1024`."""
        return f"{TAGS.get(self.recipe, self.recipe)}_ekv{self.capacity}"

    def commands(self) -> str:
        """What makes model.tflite in the working folder, as shell."""
        lengths = ",".join(map(str, self.lengths))
        graphs = " ".join(job.file for job in jobs(self.capacity, self.lengths, "static"))
        attention = ("--attn-implementation", self._attention())
        export = shell.export(self.checkpoint, self.capacity, lengths, "static", *attention)
        buckets = ",".join(map(str, self.buckets))
        told = "" if self.report is None else f"--report {shlex.quote(str(self.report))} "
        return export + PIPE.format(
            graphs=graphs,
            quantize=QUANTIZE.format(recipe=self.recipe, report=told) * (self.recipe != NONE.name),
            sign="sign.ai_edge.py" + " --output_logits_on_prefill" * self.prefill_logits,
            bucket=f"| bucket.kvcache.py --capacities {buckets} " * bool(buckets),
            wrap="| wrap.composites.py " * self.hlfb,
        )

    def _attention(self) -> str:
        """What export is to make of attention; heads are never repeated."""
        if _caps_scores(self.checkpoint):
            if self.flash:
                raise UsageError("this model caps its scores, which flash attention cannot: go without it")
            return "eager"  # lower.litert.py finds the repeated heads
        if not self.flash:
            return "grouped"
        if self.q_block is None and self.kv_block is None:
            return FLASH  # each prefill in blocks that suit its length
        default = adaptive_blocks(max(self.lengths))
        return f"{FLASH}:{self.q_block or default.q},{self.kv_block or default.kv}"


def positions_of(checkpoint: Path) -> int:
    """How many positions the model knows; 0 where its config.json says nothing of them. Raises ModelError."""
    config = _config(checkpoint)
    positions = config.get("max_position_embeddings") or config.get("n_positions") or 0
    if not isinstance(positions, int):
        raise ModelError(f"{checkpoint}: no usable config.json ({positions!r} positions)")
    return positions


def _caps_scores(checkpoint: Path) -> bool:
    """Whether the model bounds what goes into the softmax of its attention, as Gemma 2 does."""
    return bool(_config(checkpoint).get("attn_logit_softcapping"))


def _config(checkpoint: Path) -> dict[str, Any]:
    """What config.json tells of the language model. Raises ModelError."""
    try:
        config = json.loads((checkpoint / "config.json").read_text())
        return dict(config.get("text_config", config))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{checkpoint}: no usable config.json ({error!r})") from error
