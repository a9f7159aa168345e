"""What is told of an exception of the user's, however it behaves itself."""

from __future__ import annotations


def described(error: BaseException, longest: int = 300) -> str:
    """The class of an exception and its text, in one line; its `__str__` may raise."""
    try:
        text = " ".join(str(error).split())
    except BaseException as another:  # noqa: BLE001 - code of the user's too
        text = f"its text raised {type(another).__name__}"
    return f"{type(error).__name__}: {text}"[:longest].rstrip(": ")
