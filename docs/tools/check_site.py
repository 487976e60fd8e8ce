"""Check the built site: each link, image and anchor exists, and no page loads anything from elsewhere.

    python -m docs.tools.check_site build/site

Zensical's strict mode checks links between pages. This command also checks images, other files, and requests
to third parties.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}


class Page(HTMLParser):
    """The anchors and the references of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[tuple[str, str, str]] = []  # element, attribute, target
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            if value and name in ("href", "src", "srcset"):
                self.references.append((tag, name, value))


def problems(site: Path) -> list[str]:
    """Find the problems of a site.

    Args:
        site: Its folder.

    Returns:
        One line for each problem.
    """
    pages = {file: Page(file) for file in site.rglob("*.html")}
    return [
        f"{file.relative_to(site)}: {problem}"
        for file, page in sorted(pages.items())
        for reference in page.references
        if (problem := _problem(site, file, pages, *reference))
    ]


def _problem(site: Path, file: Path, pages: dict[Path, Page], tag: str, name: str, target: str) -> str:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        outside = (tag, name) in LOADED and parts.scheme != "data"
        return f"loads {target} from elsewhere" if outside else ""
    if file.name == "404.html":  # served for any address: its links begin at the root
        return ""
    path = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if path.is_dir():
        path /= "index.html"
    if not path.is_file() or not path.is_relative_to(site.resolve()):
        return f"{target} does not exist"
    if parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].anchors:
        if parts.fragment.startswith("__"):  # of the theme's own controls
            return ""
        return f"{target}: no such anchor"
    return ""


def main() -> int:
    """Print the problems of the site that the first argument names.

    Returns:
        The exit code: 0 without problems.
    """
    lines = problems(Path(sys.argv[1]).resolve())
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
