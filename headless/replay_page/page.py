"""A report and its pictures as one HTML file, which a browser shows from a disk and without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from ...pipelines.amounts import size
from ...pipelines.errors import FileError
from ...pipelines.words import printable, shown
from .report import Report, checked

# of all pictures: at that size, 43 MB as text, the page still opens in a second (measured in Chromium on two cores)
MOST_EMBEDDED = 32_000_000
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def write_page(report: Mapping[str, Any], folder: Path, out: Path) -> None:
    """Writes the page of a replay.

    Pictures of together at most ``MOST_EMBEDDED`` bytes go into the page. More stay where they are, and the page, which
    says so, names them relative to itself: then both are moved together.

    Args:
        report: see ``report.Report``.
        folder: in which the report's pictures are.
        out: the page's file, e.g. ``folder / "replay.html"``. It is replaced; its folder is made.

    Raises:
        InputError: the report is not as its schema says.
        FileError: a picture is missing, is none that a browser shows, or lies outside of the folder.
    """
    taken = checked(report)
    pictures = _pictures(taken, folder)
    amount = sum(path.stat().st_size for path in pictures.values())
    embedded = amount <= MOST_EMBEDDED
    links = {name: _embedded(path) if embedded else _relative(path, out) for name, path in pictures.items()}
    if embedded:
        where = f"The pictures are inside of this file ({size(amount)})."
    else:
        where = f"The pictures ({size(amount)}) are files beside this one: move or send them together with it."
    out.parent.mkdir(parents=True, exist_ok=True)
    page = _assembled(printable(taken["job"]), _data(taken, links, where), "data:" if embedded else "'self' file:")
    out.write_text(page, "utf-8", newline="\n")


def _pictures(report: Report, folder: Path) -> dict[str, Path]:
    """Name in the report -> its file, each once."""
    root = folder.resolve()
    found: dict[str, Path] = {}
    for place, cell in enumerate(report["cells"]):
        for role, name in cell["files"].items():
            if not isinstance(name, str) or name in found:
                continue
            path = (root / name).resolve()
            said = f"The report for the page names {shown(name)} as cells[{place}].files.{role}"
            if not path.is_relative_to(root):
                raise FileError(f"{said}, which is outside of {folder}. Copy the picture into that folder.")
            if path.suffix.lower() not in _TYPES:
                raise FileError(f"{said}, which is no picture that a browser shows. Save it as {', '.join(_TYPES)}.")
            if not path.is_file():
                raise FileError(f"{said}, which is not in {folder}. Write null where a cell has no such picture.")
            found[name] = path
    return found


def _embedded(path: Path) -> str:
    return f"data:{_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _relative(path: Path, out: Path) -> str:
    # `./`: else `a:b.png` would be of the scheme `a`
    try:
        return "./" + quote(Path(os.path.relpath(path, out.resolve().parent)).as_posix())
    except ValueError as error:
        raise FileError(
            f"{out} cannot name {path}, which is on another drive. Write the page to the drive of its pictures."
        ) from error


def _data(report: Report, links: Mapping[str, str], where: str) -> str:
    """What the script reads, as JSON that can stand in HTML."""
    # JavaScript rounds whole numbers beyond 2^53, which seeds may be
    cells = [{**cell, "seed": None if cell["seed"] is None else str(cell["seed"])} for cell in report["cells"]]
    text = json.dumps({**report, "cells": cells, "pictures": links, "where": where}, allow_nan=False)
    # no prompt can end the script element or begin a comment; all that is not ASCII is already escaped
    return text.replace("<", "\\u003c")


def _assembled(title: str, data: str, picture_sources: str) -> str:
    style = _part("page.css")
    script = "\n".join(map(_part, ("cells.js", "page.js", "engine.js", "begin.js")))
    # nothing but this very script and style, and pictures; the last two refuse HTML that is made of text
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digest(script)}",
            f"style-src {_digest(style)}",
            f"img-src {picture_sources}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    return Template(_part("page.html")).substitute(
        title=html.escape(title), policy=policy, style=style, script=script, data=data
    )


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8").strip()


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
