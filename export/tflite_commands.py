"""The shell commands that make one TFLite or `.litertlm` file with AI Edge's signatures of a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.config import CheckpointConfig
from export.graph_specs import graph_specs
from export.options import FLASH, GROUPED, check_length
from export.shell import export_command
from o2o.errors import UsageError
from o2o.operators.core_attention import adaptive_blocks
from o2o.quantization.recipes import NONE, find_recipe

PIPE = """
merge.circles.py {graphs} \\
  | fuse.attention.py --core | fuse.rms_norm.py | fuse.rope.py | fuse.bmm_lhs_const.py | gc.py {quantize}\\
  | lower.litert.py{lower} | {sign} {bucket}{wrap}| bind.weights.py {output}
"""
WRITE = "-o model.tflite"
PACK = "| pack.litertlm.py --tokenizer {checkpoint} -o model.litertlm"

QUANTIZE = """| quantize.weights.py --recipe {recipe} {report}| fuse.fc.py """

TAGS = {
    "none": "f32",
    "float16": "f16",
    "dynamic_int8": "q8",
    "weight_only_int8": "wi8",
    "dynamic_int4_block32": "q4_block32",
    "dynamic_int4_block128": "q4_block128",
    "dynamic_int4_block32_head": "q4_block32_head",
}
"""{recipe: its tag in a file name}, as in AI Edge's converters."""


@dataclass(frozen=True)
class Conversion:
    """A conversion of a checkpoint to one TFLite file.

    Attributes:
        checkpoint: The checkpoint's folder.
        capacity: S, rows of the KV caches.
        prefill_lengths: T of each prefill.
        recipe: A recipe of `o2o.quantization.recipes`, or an alias of one.
        flash: Compute attention in blocks.
        q_block: Queries of a block; None for the default for the longest prefill
            (`o2o.operators.core_attention.adaptive_blocks`).
        kv_block: Keys of a block; None as for `q_block`.
        hlfb: Wrap attention and norms in composites.
        prefill_logits: Let prefills return logits.
        report: Where to write the quantization report; None for nowhere.
        buckets: Capacities of further decode signatures.
        capacity_flag: The flag that set the capacity, for messages.
        for_litert_lm: Pack the model with its tokenizer into model.litertlm.

    Raises:
        UsageError: The recipe is unknown, values exclude each other, or the model excludes one.
    """

    checkpoint: Path
    capacity: int
    prefill_lengths: Sequence[int]
    recipe: str = "none"
    flash: bool = False
    q_block: int | None = None
    kv_block: int | None = None
    hlfb: bool = False
    prefill_logits: bool = False
    report: Path | None = None
    buckets: Sequence[int] = ()
    capacity_flag: str = "--max-length"
    for_litert_lm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", find_recipe(self.recipe).name)
        if not self.prefill_lengths or min(self.prefill_lengths) < 2:
            raise UsageError("a prefill reads 2 tokens or more; decode reads one")
        if self.buckets and not 0 < min(self.buckets) <= max(self.buckets) < self.capacity:
            buckets = ",".join(map(str, self.buckets))
            raise UsageError(f"buckets {buckets}: give capacities from 1 to {self.capacity - 1}")
        graph_specs(self.capacity, self.prefill_lengths, "static")
        config = CheckpointConfig.read(self.checkpoint)
        check_length(config, self.capacity, self.capacity_flag)

    @property
    def tag(self) -> str:
        """The part of the file name that says how it was converted, such as `q8_ekv1024`."""
        return f"{TAGS.get(self.recipe, self.recipe)}_ekv{self.capacity}"

    def commands(self) -> list[str]:
        """List the commands that write model.tflite or model.litertlm into the working folder.

        Returns:
            The commands, in order.
        """
        lengths = ",".join(map(str, self.prefill_lengths))
        graphs = " ".join(spec.file for spec in graph_specs(self.capacity, self.prefill_lengths, "static"))
        attention = ("--attn-implementation", self._attention())
        export = export_command(self.checkpoint, self.capacity, lengths, "static", *attention)
        buckets = ",".join(map(str, self.buckets))
        report = "" if self.report is None else f"--report {shlex.quote(str(self.report))} "
        pipe = PIPE.format(
            graphs=graphs,
            quantize=QUANTIZE.format(recipe=self.recipe, report=report) * (self.recipe != NONE.name),
            lower="" if self.flash else " --flash never",
            sign="sign.ai_edge.py" + " --output_logits_on_prefill" * self.prefill_logits,
            bucket=f"| bucket.kvcache.py --capacities {buckets} " * bool(buckets),
            wrap="| wrap.composites.py " * self.hlfb,
            output=PACK.format(checkpoint=shlex.quote(str(self.checkpoint))) if self.for_litert_lm else WRITE,
        )
        return [export, pipe]

    def _attention(self) -> str:
        """The attention implementation to export. The file never repeats key/value heads."""
        if not self.flash:
            return GROUPED
        if self.q_block is None and self.kv_block is None:
            return FLASH  # each prefill in blocks that suit its length
        default = adaptive_blocks(max(self.prefill_lengths))
        return f"{FLASH}:{self.q_block or default.q},{self.kv_block or default.kv}"
