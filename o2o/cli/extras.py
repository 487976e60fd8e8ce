"""The extras of this distribution: which packages each installs, and which of them are missing."""

from __future__ import annotations

import re

from o2o.errors import O2oError

DISTRIBUTION = "o2o"


def require(extra: str) -> None:
    """Check that all packages of an extra are installed.

    Args:
        extra: The name of the extra.

    Raises:
        O2oError: A package is missing.
    """
    from importlib.metadata import PackageNotFoundError, version

    for name in _packages(extra):
        try:
            version(name)
        except PackageNotFoundError:
            raise O2oError(f"this command needs the {extra} extra: {install_command(extra)}") from None


def extra_of(module: str) -> str | None:
    """Find the extra that installs a module.

    Args:
        module: The name of a missing module.

    Returns:
        The first extra with a package of that name; None if there is none.
    """
    wanted = _normalized(module.partition(".")[0])
    return next((extra for extra, package in _requirements() if package == wanted), None)


def install_command(extra: str) -> str:
    """Write the command that installs an extra.

    Args:
        extra: The name of the extra.

    Returns:
        The command, quoted for the shell.
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _packages(extra: str) -> list[str]:
    return [package for one, package in _requirements() if one == extra]


def _requirements() -> list[tuple[str, str]]:
    """Pairs of an extra and a package, in the order of the metadata. Empty without an installation."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    pairs = []
    for line in lines:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        package = re.match(r"[\w.-]+", line)
        if extra and package:
            pairs.append((extra[1], _normalized(package[0])))
    return pairs


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
