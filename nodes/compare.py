"""Comparing pictures with the trainer's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import InputError
from ..pipelines.words import shown
from .host import current_host
from .page_pairs import PagePairs
from .save_image import FORMATS
from .shared import CATEGORY, check_texts, search_words

if TYPE_CHECKING:
    import torch

    from ..pipelines.compare.comparison import Comparison
    from ..pipelines.compare.pixels import Pixels
    from ..pipelines.jobs.job import Format
    from ..pipelines.replay.told import ToldCell

_SCHEMA = 1  # of the report; grows where a key changes its meaning or leaves
_SHOWN = 5  # pictures whose causes are listed on the node


class AITKComparePreviews:
    """Two batches of pictures to numbers, heat maps and a verdict for each pair."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "ours": ("IMAGE", {"tooltip": "What this pack rendered."}),
                "trainer": ("IMAGE", {"tooltip": "The trainer's previews, in the same order and of the same size."}),
            },
            "optional": {
                "floor": (
                    "IMAGE",
                    {
                        "tooltip": "Ours once more, rendered with other kernels, e.g. on another device or with "
                        "another transformer_attention. Only with it can a verdict be 'equal up to kernel noise'."
                    },
                ),
                "format": (
                    list(FORMATS),
                    {
                        "default": "png",
                        "tooltip": "The job's sample.format. For jpg and webp ours is encoded as AI Toolkit encodes "
                        "its previews, decoded, and only then compared.",
                    },
                ),
                "replay_report": (
                    "STRING",
                    {
                        "forceInput": True,
                        "tooltip": "The report of AITK Replay Previews, where both batches come from there: adds the "
                        "likely causes of each difference.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("heat_map", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Where each pair differs: black is equal, and each colour stands for twice as many levels as the one before.",
        "The trainer's picture, ours and the heat map beside each other, a row for each pair.",
        "JSON: the verdict and the numbers of each pair, and with replay_report the likely causes.",
    )
    FUNCTION = "compare"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = "Measures how far pictures are from the trainer's previews, or any two batches from each other."
    SEARCH_ALIASES = search_words("compare", "difference", "heat map", "psnr", "ssim", "lpips", "preview")

    def compare(
        self,
        ours: torch.Tensor,
        trainer: torch.Tensor,
        floor: torch.Tensor | None = None,
        format: Format = "png",
        replay_report: str | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        from ..pipelines.compare.comparison import Verdict, compare_as, summary
        from ..pipelines.compare.pixels import batch_pixels
        from ..pipelines.replay.told import in_a_line

        if format not in FORMATS:
            raise InputError(f"format {shown(format)} is unknown. Choose one of: {', '.join(FORMATS)}.")
        own, notes = batch_pixels("ours", ours)
        theirs, more = batch_pixels("trainer", trainer)
        floors: Sequence[Pixels | None] = [None] * len(own)
        if floor is not None:
            measured, also = batch_pixels("floor", floor)
            _check_alike("floor", measured, "ours", own)
            floors, notes = measured, notes + also
        _check_alike("trainer", theirs, "ours", own)
        told = _told(replay_report, len(own))
        notes = (*notes, *more, *(f"{one.where}: the job has no picture of it" for one in told if not one.has_preview))
        found = [compare_as(a, b, format, c) for a, b, c in zip(own, theirs, floors, strict=True)]
        causes = [line for cell, one in zip(told, found, strict=False) if (line := in_a_line(cell, one.verdict))]
        more_causes = [f"... and {len(causes) - _SHOWN} more in the report"] if len(causes) > _SHOWN else []
        current_host().show_text(unique_id, "\n".join([summary(found), *notes, *causes[:_SHOWN], *more_causes]))
        pictures = [one.as_json() for one in found]
        for picture, cell in zip(pictures, told, strict=False):
            identical = picture["verdict"] == Verdict.IDENTICAL
            picture["causes"] = [] if identical else [dict(cause) for cause in cell.causes]
        report = {
            "schema": _SCHEMA,
            "summary": summary(found),
            "format": format,
            "notes": list(notes),
            "pictures": pictures,
        }
        sheet, heats = _sheet(own, theirs, found), _images([one.heat_map for one in found])
        pairs = PagePairs(current_host().page_folder())
        for index, one in enumerate(found):
            pairs.add(f"picture {index + 1}", one.words, theirs[index], own[index], one)
        return {"ui": pairs.ui(), "result": (heats, sheet, json.dumps(report, ensure_ascii=False, indent=1))}


def _told(report: str | None, pictures: int) -> list[ToldCell]:
    """What a replay's report says of each picture; nothing without one."""
    from ..pipelines.replay.told import told_cells

    if report is None:
        return []
    check_texts({"replay_report": report})
    cells = told_cells(report)
    if len(cells) != pictures:
        raise InputError(
            f"replay_report is of {len(cells)} pictures, and ours holds {pictures}. Connect ours, trainer and report "
            "of one AITK Replay Previews."
        )
    return cells


def _check_alike(name: str, pictures: list[Pixels], other: str, others: list[Pixels]) -> None:
    """Refuses batches whose pictures are no pairs; all pictures of a batch have one size."""
    if len(pictures) != len(others):
        raise InputError(
            f"{name} holds {len(pictures)} pictures and {other} {len(others)}: each is compared with that in the same "
            "place. Connect batches of the same length."
        )
    if pictures[0].shape != others[0].shape:
        sizes = [f"{one[0].shape[1]} x {one[0].shape[0]}" for one in (pictures, others)]
        raise InputError(
            f"The pictures of {name} are {sizes[0]} pixels and those of {other} {sizes[1]}. Render at the sample's "
            "width and height, with the recipe of the trainer's time: recipes snap sizes in different ways."
        )


def _sheet(own: list[Pixels], theirs: list[Pixels], found: list[Comparison]) -> torch.Tensor:
    import numpy as np

    from ..pipelines.compare.sheet import Cell, Column, contact_sheet

    height, width, _ = own[0].shape
    rows = [f"picture {index + 1}" for index in range(len(found))]
    cells = (Cell(index, 0, theirs[index], own[index], one.heat_map, one.caption) for index, one in enumerate(found))
    return _images([np.asarray(contact_sheet(rows, [Column("trainer and ours", width, height)], cells))])


def _images(pictures: Sequence[Pixels | None]) -> torch.Tensor:
    """Pictures of one size as ComfyUI's IMAGE."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([one for one in pictures if one is not None])).float() / 255
