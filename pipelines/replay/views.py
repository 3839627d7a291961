"""A replay's pictures for people: batches of one size, and the cells of a contact sheet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compare.sheet import Cell as SheetCell
from ..compare.sheet import Column, contact_sheet
from ..words import cut

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..compare.pixels import Pixels
    from .judge import Judged
    from .selection import Selection

_LONGEST_LABEL = 120  # letters of a prompt


def to_batch(pictures: Sequence[Pixels | None], like: Sequence[Pixels | None] = ()) -> torch.Tensor:
    """Pictures as one IMAGE.

    Args:
        pictures: uint8 [H, W, 3] each; None is a picture that is missing.
        like: others, whose sizes count too; of both at least one picture is there.

    Returns:
        [B, H, W, 3], 0..1, of the largest height and width: smaller pictures stand in the upper left corner on black,
        and a missing one is black.
    """
    import torch

    there = [picture for picture in (*pictures, *like) if picture is not None]
    height, width = (max(picture.shape[axis] for picture in there) for axis in (0, 1))
    batch = torch.zeros((len(pictures), height, width, 3))
    for place, picture in zip(batch, pictures, strict=True):
        if picture is not None:
            place[: picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture.copy())
    # in place: the batch of a large replay is many gigabytes
    return batch.div_(255)


def as_batch(picture: Image) -> torch.Tensor:
    """One picture of Pillow's as an IMAGE, [1, H, W, 3], 0..1."""
    import numpy as np

    return to_batch([np.array(picture.convert("RGB"))])


@dataclass(frozen=True)
class SheetTable:
    """Rows and columns of a contact sheet: checkpoints at each strength, and samples.

    Attributes:
        rows: step and strength -> the row's label.
        columns: the sample's index -> the column, with the size that the job asks for: no picture is larger.
    """

    rows: dict[tuple[int, float], str]
    columns: dict[int, Column]

    @classmethod
    def of(cls, selection: Selection) -> SheetTable:
        several = len(selection.strengths) > 1
        rows = {
            (checkpoint.step, strength): f"step {checkpoint.step}" + (f" x {strength:g}" if several else "")
            for checkpoint in selection.checkpoints
            for strength in selection.strengths
        }
        samples = [sample for checkpoint in selection.checkpoints for sample in selection.at(checkpoint)]
        columns = {}
        for index, one in selection.columns.items():
            own = [sample for sample in samples if sample.index == index]
            width, height = max(sample.width for sample in own), max(sample.height for sample in own)
            columns[index] = Column(f"{index}: {cut(one.prompt, _LONGEST_LABEL)}", max(1, width), max(1, height))
        return cls(rows, columns)

    @property
    def row_labels(self) -> list[str]:
        return list(self.rows.values())

    def draw(self, cells: Iterable[SheetCell], *, with_engine: bool = False) -> Image:
        """The sheet of :meth:`cells`, each made when it is drawn; see :func:`..compare.sheet.contact_sheet`."""
        return contact_sheet(self.row_labels, list(self.columns.values()), cells, with_engine=with_engine)

    def cells(self, judged: Iterable[Judged]) -> Iterator[SheetCell]:
        """What is drawn, one at a time."""
        rows, columns = list(self.rows), list(self.columns)
        for one in judged:
            place, comparison = one.outcome.place, one.comparison
            yield SheetCell(
                rows.index((place.step, place.strength)),
                columns.index(place.index),
                one.trainers(),
                one.ours(),
                comparison and comparison.heat_map,
                one.outcome.error or (comparison.caption if comparison else "no preview to compare with"),
            )
