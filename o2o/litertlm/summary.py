"""Description of a `.litertlm` file: as data for JSON (`summarize`), and as text (`render`)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from o2o.cli.text import counted
from o2o.litertlm.container import Bundle
from o2o.litertlm.package_files import metadata_of

_SHOWN = 60  # characters of a chat template


def summarize(bundle: Bundle) -> dict[str, Any]:
    """Describe a file as data.

    Args:
        bundle: The file.

    Returns:
        Data for JSON: version, items, sections, metadata.

    Raises:
        ModelError: Its LlmMetadata is damaged.
    """
    metadata = metadata_of(bundle)
    return {
        "version": list(bundle.version),
        "items": dict(bundle.items),
        "sections": [
            {"kind": one.kind, "start": one.start, "bytes": one.size, "items": dict(one.items)}
            for one in bundle.sections
        ],
        "metadata": None if metadata is None else asdict(metadata),
    }


def render(summary: dict[str, Any], name: str, size: int) -> str:
    """Describe a file as text.

    Args:
        summary: From `summarize`.
        name: The file's name.
        size: Its length in bytes.

    Returns:
        Lines.
    """
    version = ".".join(map(str, summary["version"]))
    lines = [f"{name}: LiteRT-LM {version}, {size:,} bytes, {counted(len(summary['sections']), 'section')}"]
    for section in summary["sections"]:
        items = "".join(f"  {key}={value}" for key, value in section["items"].items())
        lines.append(f"  {section['kind']:<18}{section['bytes']:>15,} bytes at {section['start']:,}{items}")
    for key, value in (summary["metadata"] or {}).items():
        if value not in (None, (), "", False):
            text = value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  {key:<18}{str(text)[:_SHOWN]}{'...' * (len(str(text)) > _SHOWN)}")
    return "\n".join(lines) + "\n"
