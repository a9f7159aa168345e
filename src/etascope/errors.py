"""The errors that etascope raises on purpose: one sentence each: what is wrong, where, what to do.

A failed *trial* is never one of these: it is a value in the records (see `etascope.records`).
"""

from etascope.words import visible

RAISED = (Exception, SystemExit)
"""What code of the user's may raise: `sys.exit()` in it ends its own trial too, not the study."""


class EtascopeError(Exception):
    """The base of every error that etascope raises on purpose.

    Names of files and texts of other exceptions stand in the message, and a terminal shows it:
    it is one line, with every character of theirs made visible.

    >>> print(EtascopeError("there is no study in \\x1b[2J"))
    there is no study in \\x1b[2J
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


class UsageError(EtascopeError, ValueError):
    """Something the caller passed cannot work; raised at the door, before any training.

    On the command line this is exit status 2.
    """


class DataError(UsageError):
    """A data file is not what its name promises; the message names the file and the byte offset."""


class StudyError(EtascopeError):
    """A study directory cannot be read, written or continued.

    On the command line this is exit status 1.
    """
