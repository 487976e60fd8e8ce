"""What each filter does to the demo model, in the pipeline of `make run`.

    python -m docs.tools.demo_model FOLDER

FOLDER holds the files of that pipeline: prefill.circle, decode_.circle, decode.circle and model.circle. The
command runs each filter on them and writes its messages to `demo_model.json`, for the pages of the filters.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from o2o.cli.pipelines import parse
from o2o.filters import pipeline

RESULTS = Path(__file__).with_name("demo_model.json")

NOTES = {
    "bind.weights.py": "These graphs hold their weights. `o2o convert` exports graphs that refer to them.",
    "fuse.bmm_lhs_const.py": "No graph has a BATCH_MATMUL with a constant operand. Linear layers are "
    "FULLY_CONNECTED; rotary frequencies times positions are a MUL. The pipeline has this filter for "
    "models with such products: GPT-2's linear layers.",
    "fuse.rope.py": "In decode, ATTENTION rotates the queries and keys: no rotation is left.",
    "raise.circle.py": "It prints nothing when it succeeds.",
    "reshape.fc_weight.py": "All weights are matrices already.",
    "window.kvcache.py": "No layer of the demo model has a window.",
    "sign.ai_edge.py": "This pipeline's prefill begins at position 0. `o2o convert --format tflite` exports "
    "prefills that take a position, and signs them.",
}
"""Why a filter does nothing, or less than expected."""

COMMANDS = [
    "bind.weights.py < model.circle",
    "lower.litert.py < model.circle | bucket.kvcache.py --capacities 16",
    "merge.circles.py prefill.circle decode.circle | downcast.input_ids.py",
    "lower.onnx.py < model.circle | fix.shape.py T=1",
    "fuse.attention.py < decode_.circle",
    "merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py",
    "fuse.fc.py < model.circle",
    "fuse.rms_norm.py < model.circle",
    "fuse.rope.py < model.circle",
    "merge.circles.py prefill.circle decode.circle | fuse.bmm_lhs_const.py | downcast.input_ids.py | gc.py",
    "legalize.onert.py < model.circle",
    "lower.litert.py < model.circle",
    "lower.onnx.py --form ort < model.circle",
    "merge.circles.py prefill.circle decode.circle",
    "quantize.weights.py --recipe dynamic_int8 < model.circle",
    "lower.litert.py < model.circle | raise.circle.py",
    "reduce.model.py decode.circle -- sh -c '! grep -q rsqrt_[1] {}'",
    "remove.io.py output --keep_by_name logits < prefill.circle",
    "rename.io.py input input_ids=tokens < decode.circle",
    "rename.io.remove_prefix.py past_ < decode.circle",
    "reorder.output.move_0_to_last.py < prefill.circle",
    "remove.io.py output --keep_by_id 0,1 < prefill.circle | reorder.output.py --by_id 1,0",
    "reshape.fc_weight.py < model.circle",
    "fuse.attention.py < decode_.circle | reshape.io.py input --by_shape [1,16,30,4] [1,16,32,4]",
    "resize.tokens.py --tokens 8 < prefill.circle",
    "select.op.py --by_id 0-20 < decode.circle",
    "lower.litert.py < model.circle | sign.ai_edge.py",
    "fuse.attention.py < decode_.circle | transpose.io.kvcache.py",
    "window.kvcache.py < model.circle",
    "merge.circles.py prefill.circle decode.circle | sign.contract.py",
    "with.py decode.circle",
    "rename.io.py input input_ids=tico::tokens < decode.circle | rename.io.remove_namespace.py",
    "lower.litert.py < model.circle | wrap.composites.py",
]
"""One command for each filter that changes a model. The filter is the last of its pipe."""


def name_of(command: str) -> str:
    """Return the filter that a command is about.

    Args:
        command: An element of `COMMANDS`.

    Returns:
        The name of the last command of the pipe.
    """
    return command.rpartition("|")[2].split()[0]


def measure(command: str, folder: Path) -> list[str]:
    """Run a command.

    Args:
        command: An element of `COMMANDS`.
        folder: See the module.

    Returns:
        The messages of its filter, a line each, without the filter's name.
    """
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as messages,
    ):
        pipeline.run(parse(f"{command} > /dev/null"))
    prefix = f"{name_of(command)}: "
    return [line.removeprefix(prefix) for line in messages.getvalue().splitlines() if line.startswith(prefix)]


def main() -> None:
    """Run all commands, and write their messages."""
    folder = Path(sys.argv[1])
    results = {
        (name := name_of(c)): {"command": c, "messages": measure(c, folder), "note": NOTES.get(name, "")}
        for c in COMMANDS
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
