"""Reads a file that must hold one JSON object, and says what is wrong with it otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.pictures.saving import reason
from ..pipelines.words import shown

if TYPE_CHECKING:
    from ..pipelines.errors import AITKError


@dataclass(frozen=True)
class Kind:
    """What sort of file is expected.

    Attributes:
        name: in a message, e.g. ``workflow``.
        about: a sentence that says what such a file is.
        mend: a sentence that says what to do with a damaged one.
        error: what is raised.
    """

    name: str
    about: str
    mend: str
    error: type[AITKError]


def read_object(path: Path, kind: Kind) -> dict[str, Any]:
    """The object in a file.

    Raises:
        AITKError: ``kind.error``: no such file, no text, not JSON (with line and column), or no object.
    """
    what = f"{kind.name.capitalize()} {shown(path.name)}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise kind.error(f"{what} is not there. Check the file's name and folder.") from None
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no text"
        raise kind.error(f"{what} cannot be read: {why}. {kind.about}") from error
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise kind.error(f"{what} is nested too deeply to be a {kind.name}.") from error
    except json.JSONDecodeError as error:
        raise kind.error(
            f"{what} is not valid JSON: see line {error.lineno}, column {error.colno}. {kind.mend}"
        ) from error
    except ValueError as error:
        # Python reads no number of thousands of digits
        raise kind.error(f"{what} holds a number that is too long. {kind.mend}") from error
    if not isinstance(document, dict):
        raise kind.error(f"{what} holds a JSON {kind_of(document)}, not an object. {kind.about}")
    return document


def kind_of(value: object) -> str:
    """What people call a value of JSON, e.g. ``list``."""
    return {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}.get(
        type(value), "null"
    )
