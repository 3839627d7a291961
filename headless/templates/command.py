"""The command ``templates``: writes ``example_workflows/`` anew."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ...nodes.host import PlainHost, use_host
from ...pipelines.pictures.saving import replace_file
from .scheme import thumbnail
from .shelf import templates

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"


def templates_command(argv: Sequence[str]) -> int:
    """Writes every workflow and its thumbnail, and removes what is no template any more; returns the exit status."""
    if argv:
        raise SystemExit("templates takes no arguments")
    files = dict(template_files())
    for name, content in files.items():
        replace_file(FOLDER / name, content)
    for path in FOLDER.iterdir():
        if path.name not in files:
            path.unlink()
    return 0


def template_files() -> Iterator[tuple[str, str | bytes]]:
    """Name and content of each file."""
    with TemporaryDirectory() as folder:
        # nodes list the files of a host's folders; a template knows none of them
        use_host(PlainHost(Path(folder), Path(folder), Path(folder), "cpu"))
        try:
            for drawing in templates():
                document = drawing.document()
                yield f"{drawing.name}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n"
                file = io.BytesIO()
                thumbnail(drawing).save(file, "JPEG", quality=82)
                yield f"{drawing.name}.jpg", file.getvalue()
        finally:
            use_host(None)
