"""Drawings: SVG with boxes, arrows and text, in light and in dark colors.

The colors follow the reader's setting (`prefers-color-scheme`), also where the SVG is an image of a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Literal

STYLE = """\
  text { font: 15px system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } .small { font-size: 13px; fill: #57606a }
  .code { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 13px }
  rect { stroke-width: 1.5 } .plain { fill: #f6f8fa; stroke: #8c959f } .group { fill: none; stroke: #afb8c1; stroke-dasharray: 5 4 }
  .export { fill: #fff4e0; stroke: #bf8700 } .rewrite { fill: #e3f0ff; stroke: #0969da }
  .run { fill: #e2f6e6; stroke: #1a7f37 }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#head) } #head path { fill: #57606a }
  .weights { stroke-dasharray: 6 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9da7b3 }
    .plain { fill: #1f252d; stroke: #768390 } .group { stroke: #545d68 }
    .export { fill: #33270f; stroke: #d4a72c } .rewrite { fill: #10263f; stroke: #54aeff }
    .run { fill: #12291a; stroke: #4ac26b }
    .arrow { stroke: #9da7b3 } #head path { fill: #9da7b3 }
  }
"""  # noqa: E501

Kind = Literal["plain", "group", "export", "rewrite", "run"]
LINE = 19  # of text, in pixels


@dataclass
class Drawing:
    """A drawing. Parts are painted in the order of the calls that add them.

    Attributes:
        width: Its width in pixels.
        height: Its height in pixels.
        title: The description for readers who cannot see the drawing.
    """

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, kind: Kind, lines: list[str]) -> None:
        """Add a box with centered lines of text.

        Args:
            x: Its left side.
            y: Its upper side.
            w: Its width.
            h: Its height.
            kind: Its color.
            lines: The text. A line in backticks is code, one after `#` is a title, one after `-` is small.
        """
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8"/>')
        top = y + h / 2 - (len(lines) - 1) * LINE / 2 + 5
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + number * LINE, line)

    def text(self, x: float, y: float, line: str, anchor: str = "middle") -> None:
        """Add a line of text.

        Args:
            x: Its anchor.
            y: Its baseline.
            line: The text, as in `box`.
            anchor: `start`, `middle` or `end`.
        """
        kind = {"`": "code", "#": "title", "-": "small"}.get(line[:1], "")
        content = escape(line.strip("`") if kind == "code" else line.lstrip("#- ") if kind else line)
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{kind}" {place}>{content}</text>')

    def arrow(self, *points: tuple[float, float], kind: str = "") -> None:
        """Add an arrow along points.

        Args:
            points: Its corners, the head last.
            kind: Its style besides `arrow`.
        """
        path = " ".join(f"{'L' if number else 'M'}{x} {y}" for number, (x, y) in enumerate(points))
        style = f"arrow {kind}".strip()
        self._parts.append(f'<path class="{style}" d="{path}"/>')

    def svg(self) -> str:
        """Write the drawing.

        Returns:
            The text of an SVG file.
        """
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.title)}">',
                f"<title>{escape(self.title)}</title>",
                f"<style>\n{STYLE}</style>",
                '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" '
                'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
                '<path d="M0 0 L10 5 L0 10 z"/></marker></defs>',
                *self._parts,
                "</svg>\n",
            ]
        )
