"""Pairs of pictures for the page's viewer: files that ComfyUI's page can show, and what was measured of them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..pipelines.pictures.saving import save_new

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..pipelines.compare.comparison import Comparison
    from ..pipelines.compare.pixels import Pixels

KEY = "aitk_pairs"
MOST = 64  # pairs whose pictures are written; a picture of a megapixel takes a tenth of a second and two megabytes
_FOLDER = "aitk"  # below ComfyUI's folder of passing files
_QUICK = 1  # PNG's compression


class PagePairs:
    """Collects the pairs of a run, one at a time.

    Args:
        folder: of the host's page; None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._pairs: list[dict[str, Any]] = []
        self._more = 0

    def add(
        self, title: str, words: str, trainer: Pixels | None, ours: Pixels | None, comparison: Comparison | None
    ) -> None:
        """One pair.

        Args:
            title: which, in a few words.
            words: the verdict, a sentence.
            trainer, ours: uint8 [H, W, 3]; None where there is none.
            comparison: of the two; None where they were not compared.
        """
        if self._folder is None:
            return
        if len(self._pairs) == MOST:
            self._more += 1
            return
        heat = comparison and comparison.heat_map
        self._pairs.append(
            {
                "title": title,
                "words": words,
                "metrics": {} if comparison is None else comparison.metrics,
                "trainer": self._file(trainer),
                "ours": self._file(ours),
                "heat_map": self._file(heat),
            }
        )

    def ui(self) -> dict[str, Any]:
        """What the node hands to the page."""
        return {KEY: [json.dumps({"pairs": self._pairs, "more": self._more})]} if self._pairs else {}

    def _file(self, pixels: Pixels | None) -> Mapping[str, str] | None:
        if pixels is None or self._folder is None:
            return None
        from PIL import Image

        folder = self._folder / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        save = partial(Image.fromarray(pixels).save, format="PNG", compress_level=_QUICK)
        path = save_new(folder, [f"{uuid4().hex}.png"], save)
        return {"filename": path.name, "subfolder": _FOLDER, "type": "temp"}
