"""`python -m o2o FILTER ...`: the same as the command of that name (`python -m o2o fuse.attention`)."""

from __future__ import annotations

import importlib
import sys

from o2o import filters


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {name.replace("_", "."): name for name in filters.names()}
    commands["inspect.model"] = commands["inspect"]  # why they differ: pyproject.toml
    wanted = arguments[0].removesuffix(".py") if arguments else ""
    # File names cannot tell `rename.io.remove_prefix` from `rename.io.remove.prefix`: neither need the user.
    module = commands.get(wanted.replace("_", "."))
    if module is None:
        known = ", ".join(sorted(commands))
        print(f"python -m o2o: no filter {wanted!r}; there are {known}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"o2o.filters.{module}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
