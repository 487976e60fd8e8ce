"""The picture of the pipeline: from a checkpoint to text."""

from __future__ import annotations

from docs.tools.drawing import Drawing

TITLE = (
    "The pipeline. A checkpoint is exported to graphs that refer to their weights. Filters rewrite and merge "
    "the graphs. The last filter inserts the weights. A runtime runs the package."
)


def drawing() -> str:
    """Draw the pipeline: export, filters, and runtime, each in a row of its own color.

    Returns:
        The text of an SVG file.
    """
    d = Drawing(960, 550, TITLE)

    d.text(20, 28, "#Export", "start")
    d.box(20, 42, 190, 100, "plain", ["#checkpoint", "-safetensors or PyTorch", "-config, tokenizer"])
    d.box(
        280,
        42,
        270,
        100,
        "export",
        ["`python -m export`", "-torch.export and TICO", "-on the meta device: no weights"],
    )
    d.box(620, 42, 140, 44, "plain", ["`prefill.circle`"])
    d.box(620, 98, 140, 44, "plain", ["`decode_.circle`"])
    d.text(776, 74, "-some hundred kilobytes", "start")
    d.text(776, 93, "-each; weights by", "start")
    d.text(776, 112, "-reference", "start")
    d.arrow((210, 92), (278, 92))
    d.arrow((550, 78), (588, 64), (618, 64))
    d.arrow((550, 106), (588, 120), (618, 120))
    # The checkpoint's weights go to bind.weights.py alone.
    d.arrow((115, 142), (115, 176), (905, 176), (905, 238), kind="weights")
    d.text(130, 169, "-weights: streamed, each once, by the last filter", "start")
    d.arrow((690, 142), (690, 204), (44, 204), (44, 238))

    d.text(62, 228, "#Filters, connected by pipes", "start")
    d.box(20, 240, 200, 110, "rewrite", ["#fuse", "`fuse.attention.py`", "`fuse.rms_norm.py`", "-and others"])
    d.box(
        254, 240, 200, 110, "rewrite", ["#change KV caches", "`reshape.io.py`", "`transpose.io.kvcache.py`"]
    )
    d.box(488, 240, 200, 110, "rewrite", ["#merge, clean up", "`merge.circles.py`", "`gc.py`"])
    d.box(
        722,
        240,
        218,
        110,
        "rewrite",
        ["#quantize, bind weights", "`quantize.weights.py`", "`bind.weights.py`"],
    )
    for x in (220, 454, 688):
        d.arrow((x, 295), (x + 32, 295))
    d.arrow((831, 350), (831, 378), (44, 378), (44, 420))

    d.text(62, 408, "#Run", "start")
    d.box(
        20,
        422,
        250,
        104,
        "plain",
        [
            "#package",
            "`model.circle`",
            "-or .tflite, .onnx; with its contract,",
            "-tokenizer and configuration",
        ],
    )
    d.box(346, 422, 210, 104, "run", ["#engine", "-LiteRT, ONNX Runtime", "-or onert"])
    d.box(606, 422, 170, 104, "run", ["#session", "-KV caches of one text,", "-sampling"])
    d.box(826, 422, 114, 104, "plain", ["#text", "-token", "-by token"])
    d.arrow((270, 474), (344, 474))
    d.arrow((556, 474), (604, 474))
    d.arrow((776, 474), (824, 474))
    return d.svg()
