"""`python -m o2o FILTER ...`: the same as the command of that name (`python -m o2o fuse.attention`)."""

from __future__ import annotations

import inspect
import sys

from o2o import filters
from o2o.cli import command
from o2o.errors import UsageError


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run("python -m o2o", lambda: _run(arguments), debug="--debug" in arguments)


def _run(arguments: list[str]) -> int:
    if arguments[:1] in ([], ["-h"], ["--help"]):
        sys.stdout.write(f"usage: python -m o2o FILTER ...\n\n{listing()}")
        return 0 if arguments else 2
    # File names cannot tell `rename.io.remove_prefix` from `rename.io.remove.prefix`: neither need the user.
    commands = {name.replace("_", "."): name for name in filters.names()}
    commands["inspect.model"] = commands["inspect"]  # why they differ: pyproject.toml
    module = commands.get(arguments[0].removesuffix(".py").replace("_", "."))
    if module is None:
        known = ", ".join(filters.load(name).name.removesuffix(".py") for name in filters.names())
        raise UsageError(f"there is no filter {arguments[0]!r}; there are: {known}")
    return filters.load(module).main(arguments[1:])


def listing() -> str:
    """All commands, a line each, with what they do."""
    found = [filters.load(name) for name in filters.names()]
    width = max(len(filter_.name) for filter_ in found)
    lines = [
        f"  {filter_.name:<{width}}  {(inspect.getdoc(filter_) or '').splitlines()[0]}" for filter_ in found
    ]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
