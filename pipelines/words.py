"""Other people's values in our messages: short and printable, whatever they are."""

from __future__ import annotations

from typing import Any

_MOST = 100


def shown(value: Any, most: int = _MOST) -> str:
    """A value in a message: a text in quotes and cut, a number as it is, of anything else its type.

    Args:
        value: e.g. what a workflow holds where a name belongs.
        most: characters of a text.
    """
    if isinstance(value, str):
        return repr(cut(value, most))
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int):
        # Python writes out no number of thousands of digits
        return str(value) if value.bit_length() <= 256 else "a number of more than 77 digits"
    return f"a value of type {type(value).__name__[:most]}"


def cut(text: str, most: int = _MOST) -> str:
    """A text of at most ``most`` characters, with dots at its end where some were left out."""
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """A text without what a terminal or a page would obey: control and escape codes, half characters."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
