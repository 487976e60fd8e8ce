"""Errors that a user can act on, with an exit code. `o2o.cli.command.run` prints them as one line."""

from __future__ import annotations


class O2oError(Exception):
    """An error whose message says in one line what is wrong and what to do. `exit_code` goes to the shell."""

    exit_code = 1


class ModelError(O2oError):
    """A model is malformed or unsupported, or a change to it cannot be proven correct."""


class UsageError(O2oError):
    """Arguments are wrong, or a selector matches nothing."""

    exit_code = 2
