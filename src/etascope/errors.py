"""The errors that etascope raises on purpose: one sentence each: what is wrong, where, what to do.

A failed *trial* is never one of these: it is a value in the records (see `etascope.records`).
"""

from etascope.words import visible

RAISED = (Exception, SystemExit)
"""What code of the user's may raise: `sys.exit()` in it ends its own trial too, not the study."""


def text_of(error: BaseException, limit: int = 500) -> str:
    """An exception as one line, `Type: what it says`, whatever its own methods do.

    >>> text_of(ValueError("two   words"))
    'ValueError: two words'
    """
    try:
        said = str(error)[: 20 * limit]  # it may be megabytes
    except BaseException as cause:  # noqa: BLE001 - its __str__ is code of the user's too
        said = f"(reading its text raised {type(cause).__name__})"
    line = f"{type(error).__name__}: {said}".encode("utf-8", "backslashreplace").decode()
    return " ".join(line.split())[:limit]


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
