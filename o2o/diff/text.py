"""The differences of two models as text, in the manner of `diff`: `-` was before, `+` is after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from o2o.cli.text import counted

Json = dict[str, Any]
SHOWN = 12
"""Entries of one kind that are shown without `everything`."""


def render(differences: Json, names: tuple[str, str], everything: bool = False) -> str:
    """Format the differences of two models.

    Args:
        differences: From `o2o.diff.compare.diff`.
        names: What the models are called.
        everything: Show all entries. Else the first dozen of each kind is shown.

    Returns:
        Lines of text; empty if nothing differs.
    """
    if differences["same"]:
        return ""
    limit = None if everything else SHOWN
    lines = [f"--- {names[0]}", f"+++ {names[1]}"]
    if (format_ := differences["format"]) is not None:
        lines.append(f"format: {format_[0]} -> {format_[1]}")
    lines += _signatures(differences["signatures"])
    lines += _contract(differences["contract"], limit)
    for sign, key in (("-", "removed_graphs"), ("+", "added_graphs")):
        for graph in differences[key]:
            lines.append(f"{sign} graph {graph['name']}: {counted(graph['operators'], 'operator')}")
    lines += _merged([_graph(graph, limit) for graph in differences["graphs"]])
    lines += _constants(differences["constants"], limit)
    lines += _metadata(differences["metadata"])
    lines += _history(differences["history"])
    return "\n".join(lines) + "\n"


def _limited(lines: Sequence[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit:
        return list(lines)
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [*lines[:limit], f"{indent}... and {len(lines) - limit:,} more (--all shows them)"]


def _merged(parts: Sequence[list[str]]) -> list[str]:
    """Sections of lines, a heading first. Sections that differ in their headings alone appear once."""
    headings: dict[tuple[str, ...], list[str]] = {}
    for heading, *rest in parts:
        headings.setdefault(tuple(rest), []).append(heading)
    return [line for rest, several in headings.items() for line in (*several, *rest)]


def _signatures(signatures: Json) -> list[str]:
    lines = [f"- signature {name}" for name in signatures["removed"]]
    lines += [f"+ signature {name}" for name in signatures["added"]]
    return lines + _merged([_signature(entry) for entry in signatures["changed"]])


def _signature(entry: Json) -> list[str]:
    renamed = f" (was {entry['renamed'][0]})" if "renamed" in entry else ""
    sides = ("inputs", "outputs")
    changes = [f"  {_interface(side[:-1], change)}" for side in sides for change in entry.get(side, ())]
    return [f"signature {entry['name']}{renamed}", *changes]


def _interface(side: str, change: Json) -> str:
    if "removed" in change:
        return f"- {side} {change['name']}: {_tensor(change['removed'])}"
    if "added" in change:
        return f"+ {side} {change['name']}: {_tensor(change['added'])}"
    if "order" in change:
        return f"order of {side}s: {', '.join(change['order'][0])} -> {', '.join(change['order'][1])}"
    return f"{side} {change['name']}: {_fields(change['changed'])}"


def _tensor(tensor: Json) -> str:
    rest = [
        f"{name} {item}" for name, item in tensor.items() if name not in ("dtype", "shape", "name", "bytes")
    ]
    return " ".join([str(tensor["dtype"]), _value(tensor["shape"]), *rest])


def _fields(fields: Json) -> str:
    return ", ".join(f"{name} {_value(a)} -> {_value(b)}" for name, (a, b) in fields.items())


def _value(item: Any) -> str:
    if isinstance(item, list):
        return f"[{','.join(map(str, item))}]"
    return "none" if item is None else str(item)


def _contract(entries: Sequence[Json], limit: int | None) -> list[str]:
    lines = [
        f"  {entry['name']} of {entry['signature']}: {_value(entry['role'][0])} -> {_value(entry['role'][1])}"
        for entry in entries
    ]
    return ["contract", *_limited(lines, limit)] if lines else []


def _graph(graph: Json, limit: int | None) -> list[str]:
    operators, tensors = graph["operators"], graph["tensors"]
    count = operators["count"]
    lines = [
        f"graph {graph['name']}: {counted(count['before'], 'operator')} -> {count['after']:,}, "
        f"{count['matched']:,} match"
    ]
    lines += [f"  name: {a!r} -> {b!r}" for a, b in graph["renamed"]]
    for sign, key in (("-", "removed"), ("+", "added")):
        if len(operators[key]) > 1:
            kinds = Counter(entry["operator"] for entry in operators[key])
            lines.append(f"  {sign} {counted(len(operators[key]), 'operator')}: {_counts(kinds)}")
        lines += _limited([f"  {sign} {_operator(entry)}" for entry in operators[key]], limit)
    changed = [
        f"  {entry['operator']} {entry['name']}: {'; '.join(entry['changes'])}"
        for entry in operators["changed"]
    ]
    lines += _limited(changed, limit)
    if operators["moved"]:
        lines.append(f"  {counted(len(operators['moved']), 'operator')} moved: {_names(operators['moved'])}")
    lines += _limited([f"  tensor {t['name']}: {_fields(t['changed'])}" for t in tensors["changed"]], limit)
    lines += _limited([f"  renamed: {a} -> {b}" for a, b in tensors["renamed"]], limit)
    return lines


def _operator(entry: Json) -> str:
    operands = ", ".join("none" if name is None else name for name in entry["inputs"])
    return f"{entry['operator']}({operands}) = {', '.join(name or '' for name in entry['outputs'])}"


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _names(names: Sequence[str | None], shown: int = 3) -> str:
    rest = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return ", ".join(name or "(no name)" for name in names[:shown]) + rest


def _constants(constants: Json, limit: int | None) -> list[str]:
    lines: list[str] = []
    for sign, key in (("-", "removed"), ("+", "added")):
        entries = constants[key]
        lines += _limited(
            [f"  {sign} {e['name']}: {_tensor(e)}, {e['bytes']:,} bytes" for e in entries], limit
        )
    lines += _limited([f"  {_constant(entry)}" for entry in constants["changed"]], limit)
    count = constants["count"]
    heading = f"constants: {count['compared']:,} compared, {count['equal']:,} with the same bytes"
    return [heading, *lines] if lines else []


def _constant(entry: Json) -> str:
    parts = [_fields(entry["changed"])] if entry["changed"] else []
    apart = entry.get("distance")
    if apart is None:
        parts += [] if entry["changed"] else ["other bytes"]
    elif apart["different"] or apart["not_finite"]:
        relative = "infinite" if apart["relative"] is None else f"{apart['relative']:.2g}"
        parts.append(
            f"{apart['different']:,} of {apart['count']:,} numbers differ, "
            f"by at most {apart['largest']:.3g}, rms {apart['rms']:.3g} (relative {relative})"
        )
        if apart["not_finite"]:
            parts.append(f"{counted(apart['not_finite'], 'number')} not finite on one side")
    else:
        parts.append("stands for the same numbers")
    return f"{entry['name']}: {'; '.join(parts)}"


def _metadata(entries: Iterable[Json]) -> list[str]:
    lines = []
    for entry in entries:
        before, after = entry["bytes"]
        if before is None:
            lines.append(f"+ metadata {entry['name']} ({after:,} bytes)")
        elif after is None:
            lines.append(f"- metadata {entry['name']} ({before:,} bytes)")
        else:
            lines.append(f"metadata {entry['name']}: other contents ({before:,} -> {after:,} bytes)")
    return lines


def _history(history: Json) -> list[str]:
    if not (history["removed"] or history["added"]):
        return []
    lines = [f"history: {counted(history['shared'], 'entry', 'entries')} in common"]
    for sign, key in (("-", "removed"), ("+", "added")):
        lines += [f"  {sign} {_step(entry)}" for entry in history[key]]
    return lines


def _step(entry: Json) -> str:
    if "filter" in entry:
        return " ".join([entry["filter"], *map(str, entry.get("arguments", ()))])
    return f"merged {entry['merged']}" if "merged" in entry else json.dumps(entry)
