"""One page in HTML about a model. It holds everything itself and loads nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import onnx_ir as ir

from o2o.describe import TITLES, summarize
from o2o.model import Model, dims_of, dtype_name
from o2o.visualization.blocks import blocks_of
from o2o.visualization.layer_drawing import draw_layers

LARGEST = 25
"""Constants in the table of the largest."""
MAX_OPERATORS = 20_000
"""Operators of all graphs beyond which they are not listed."""

_STYLE = """
    :root { --text: #1f2328; --quiet: #57606a; --line: #d0d7de; --back: #fff;
        --shade: #f6f8fa; --bar: #54aeff }
    * { box-sizing: border-box }
    body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: var(--text);
      background: var(--back); max-width: 1100px; margin: 0 auto; padding: 16px }
    h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere } h2 { font-size: 18px; margin: 32px 0 8px }
    h3 { font-size: 15px; margin: 20px 0 6px } p { margin: 4px 0; color: var(--quiet) }
    .scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
    th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line) }
    td { vertical-align: top; white-space: nowrap } td.name { white-space: normal }
    th { font-weight: 600; white-space: nowrap } td.number { text-align: right; white-space: nowrap }
    td.name { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; overflow-wrap: anywhere;
      min-width: 140px }
    .bar { background: var(--bar); height: 8px; border-radius: 3px; margin: 6px 0 3px }
    .columns { display: flex; flex-wrap: wrap; gap: 32px } .columns > div { flex: 1 1 340px; min-width: 0 }
    details { border: 1px solid var(--line); border-radius: 7px; padding: 8px 12px; margin: 10px 0 }
    summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere }
    ol { padding-left: 28px } li, code { overflow-wrap: anywhere }
    svg { width: 100%; max-width: 420px; height: auto; display: block }
    svg text { font: 13px system-ui, "Segoe UI", Arial, sans-serif; fill: var(--text) }
    svg .title { font-weight: 600 } rect { stroke: #8c959f; fill: var(--shade) }
    rect.layer { fill: #e3f0ff; stroke: #0969da } rect.io { fill: #fff4e0; stroke: #bf8700 }
    .arrow { stroke: var(--quiet); stroke-width: 1.6; fill: none } .head { fill: var(--quiet) }
    @media (prefers-color-scheme: dark) {
      :root { --text: #e6edf3; --quiet: #9da7b3; --line: #3d444d; --back: #0d1117;
        --shade: #1f252d; --bar: #1f6feb }
      rect.layer { fill: #10263f; stroke: #54aeff } rect.io { fill: #33270f; stroke: #d4a72c }
    }
"""


def page(model: Model, name: str, size: int | None) -> str:
    """Write the page of a model.

    Args:
        model: A model that was read from a file.
        name: The name of the file.
        size: Its bytes; None if unknown.

    Returns:
        A document in HTML, with style and drawings. Names from the model are escaped.
    """
    summary = summarize(model, LARGEST)
    count = len(model.graphs)
    facts = [TITLES[model.format]] + ([] if size is None else [f"{size:,} bytes"])
    facts.append(f"{count} graph{'s' if count > 1 else ''}")
    parts = [f"<h1>{escape(name)}</h1><p>{escape(', '.join(facts))}</p>"]
    listed = sum(map(len, model.graphs)) <= MAX_OPERATORS
    for graph, entry in zip(model.graphs, summary["graphs"], strict=True):
        parts.append(_graph(graph, entry, listed))
    parts += [
        _constants(summary),
        _contract(summary["contract"]["signatures"]),
        _metadata(summary),
        _history(summary["history"]),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>\n<body>{''.join(parts)}</body></html>\n"
    )


# ---- graphs --------------------------------------------------------------------------------------------


def _graph(graph: ir.Graph, entry: dict[str, Any], listed: bool) -> str:
    kind = "Signature" if entry["signatures"] else "Graph"
    run_by = f"<p>run by {escape('; '.join(entry['run_by']))}</p>" if entry["run_by"] else ""
    names = [[value.name or "(no name)" for value in values] for values in (graph.inputs, graph.outputs)]
    rows = [(side, value) for side in ("inputs", "outputs") for value in entry[side]]
    tensors = _table(
        ("", "name", "dtype", "shape", "role"),
        (
            (
                side[:-1],
                _name(value),
                escape(value["dtype"]),
                escape(_shape(value["shape"])),
                escape(_role(value)),
            )
            for side, value in rows
        ),
    )
    return (
        f'<h2>{kind} {escape(entry["label"])}</h2>{run_by}<div class="columns">'
        f"<div>{draw_layers(blocks_of(graph), *names)}</div>"
        f"<div><h3>Operators: {len(graph):,}</h3>{_operators(entry['operators'])}</div></div>"
        f"<details><summary>{len(rows)} inputs and outputs</summary>{tensors}</details>"
        f"{_operator_list(graph) if listed else ''}"
    )


def _operators(counts: dict[str, int]) -> str:
    largest = max(counts.values(), default=1)
    return _table(
        (),
        (
            (
                escape(name),
                f"{count:,}",
                f'<div class="bar" style="width:{max(1, 160 * count // largest)}px"></div>',
            )
            for name, count in counts.items()
        ),
        numbers=(1,),
    )


def _operator_list(graph: ir.Graph) -> str:
    rows = (
        (
            str(index),
            escape(node.op_type),
            "<br>".join(_value(value) for value in node.inputs),
            "<br>".join(_value(value) for value in node.outputs),
        )
        for index, node in enumerate(graph)
    )
    table = _table(("", "operator", "operands", "results"), rows, numbers=(0,), names=(2, 3))
    return f"<details><summary>All {len(graph):,} operators with their tensors</summary>{table}</details>"


def _value(value: ir.Value | None) -> str:
    if value is None:
        return "none"
    shape = _shape(dims_of(value) or ())
    return f"{escape(value.name or '(no name)')} {escape(dtype_name(value))}{escape(shape)}"


# ---- the rest ------------------------------------------------------------------------------------------


def _constants(summary: dict[str, Any]) -> str:
    constants, references = summary["constants"], summary["references"]
    sizes = ", ".join(f"{name} {size:,}" for name, size in constants["by_dtype"].items())
    text = (
        f"{constants['count']:,} in {constants['buffers']:,} buffers, {constants['bytes']:,} bytes ({sizes})"
    )
    parts = [f"<h2>Largest tensors</h2><p>{escape(text)}</p>"]
    if references["count"]:
        files = ", ".join(references["files"])
        parts.append(f"<p>{references['count']:,} more are references to {escape(files)}</p>")
    largest = max((entry["bytes"] for entry in constants["largest"]), default=1)
    rows = (
        (
            f"{entry['bytes']:,}"
            f'<div class="bar" style="width:{max(1, 80 * entry["bytes"] // max(1, largest))}px"></div>',
            escape(entry["name"] or "(no name)"),
            escape(f"{entry['dtype']} {_shape(entry['shape'])}"),
            escape(", ".join(entry["graphs"])),
        )
        for entry in constants["largest"]
    )
    columns = ("bytes", "name", "dtype, shape", "graphs")
    return "".join([*parts, _table(columns, rows)])


def _contract(signatures: dict[str, Any]) -> str:
    if not signatures:
        return "<h2>Contract</h2><p>none: no tensor has a role</p>"
    parts = ["<h2>Contract</h2>"]
    for name, sides in signatures.items():
        entries = [entry for side in sides.values() for entry in side if "role" in entry]
        rows = (
            (
                escape(entry["role"]),
                escape(str(entry.get("layer", ""))),
                escape(entry["name"]),
                escape(f"{entry['dtype']} {_shape(entry['shape'])}"),
                escape(entry.get("layout", "")),
            )
            for entry in entries
        )
        table = _table(("role", "layer", "name", "dtype, shape", "layout"), rows, names=(2,))
        parts.append(f"<details><summary>{escape(name)}: {len(entries)} roles</summary>{table}</details>")
    return "".join(parts)


def _metadata(summary: dict[str, Any]) -> str:
    entries = [*summary["metadata"], *summary["associated_files"]]
    if not entries:
        return ""
    rows = ((escape(entry["name"]), f"{entry['bytes']:,}") for entry in entries)
    return "<h2>Metadata</h2>" + _table(("name", "bytes"), rows, numbers=(1,), names=(0,))


def _history(history: Sequence[dict[str, Any]]) -> str:
    if not history:
        return "<h2>History</h2><p>none</p>"
    return f"<h2>History</h2>{_steps(history)}"


def _steps(history: Sequence[dict[str, Any]]) -> str:
    items = []
    for entry in history:
        if "merged" in entry:
            inner = entry.get("history", ())
            after = _steps(inner) if inner else " nothing"
            items.append(f"<li>merged {escape(str(entry['merged']))}, after{after}</li>")
            continue
        command = shlex.join([str(entry.get("filter", "?")), *map(str, entry.get("arguments", ()))])
        version = f" ({entry['version']})" if "version" in entry else ""
        items.append(f"<li><code>{escape(command)}</code>{escape(version)}</li>")
    return f"<ol>{''.join(items)}</ol>"


def _name(entry: dict[str, Any]) -> str:
    public = f" ({', '.join(entry['public'])})" if "public" in entry else ""
    return escape((entry["name"] or "(no name)") + public)


def _role(entry: dict[str, Any]) -> str:
    parts = [entry.get("role"), f"layer {entry['layer']}" if "layer" in entry else None, entry.get("layout")]
    return ", ".join(part for part in parts if part)


def _shape(shape: Iterable[int | str]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    names: Sequence[int] = (1,),
) -> str:
    """A table of cells in HTML. Columns of numbers are aligned to the right, those of names may break."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            kind = "number" if index in numbers else "name" if index in names else ""
            cells.append(f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    heading = f"<thead><tr>{head}</tr></thead>" if columns else ""
    return f'<div class="scroll"><table>{heading}<tbody>{"".join(body)}</tbody></table></div>'
