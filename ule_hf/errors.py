"""The one error that a user is meant to read."""

from __future__ import annotations


class UleError(ValueError):
    """Bad input or an impossible combination: one line that says what, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
