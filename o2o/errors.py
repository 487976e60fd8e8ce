"""Errors that a user can act on: one line each, with an exit code (`o2o.cli.command.run` prints them)."""

from __future__ import annotations


class O2oError(Exception):
    """Something that went wrong and what to do about it, in one line. `exit_code` goes to the shell."""

    exit_code = 1


class ModelError(O2oError):
    """A model that this tool cannot take: malformed, unsupported, or not provably right to change."""


class UsageError(O2oError):
    """Wrong arguments, or a selector that matches nothing."""

    exit_code = 2
