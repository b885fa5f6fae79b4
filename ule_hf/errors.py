"""The one error that a user is meant to read."""

from __future__ import annotations


class UleError(ValueError):
    """Bad input or an impossible combination: one line that says what, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What another library says, without what it adds in further lines; its type where it says nothing.

    >>> first_line(ValueError("no number\\nat 3")), first_line(EOFError())
    ('no number', 'EOFError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
