"""A labelled contact sheet: a row for each checkpoint, a column for each sample, three or four pictures a cell."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .heat import LEGEND

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from .pixels import Pixels

MAX_CELLS = 2000
_MOST_PIXELS = 40e6  # 120 MB as RGB
_LONGEST_SIDE = 65_500  # pixels; libjpeg's
_BAND = 16_384  # pixels; what is wider goes on below
_LEAST_TILE = 12  # pixels a side
_LINE = 16  # pixels; of text of _FONT pixels
_FONT = 12
_GAP = 4  # pixels
_MARGIN = 132  # pixels, for the rows' labels
_LEGEND_STEP = 64  # pixels
_PICTURES = ("trainer", "ours", "difference")
_WITH_ENGINE = ("trainer", "engine", "ours", "difference")
_BACKGROUND, _INK, _EMPTY = (250, 250, 250), (20, 20, 20), (225, 225, 225)


@dataclass(frozen=True, eq=False)
class Cell:
    """One preview and ours.

    Attributes:
        row, column: its place.
        trainer, ours, heat_map: uint8 [H, W, 3]; None where there is none.
        caption: e.g. the verdict; one line, cut where it is too long.
        engine: the picture of AI Toolkit's own engine, likewise; drawn only on a sheet with engines.
    """

    row: int
    column: int
    trainer: Pixels | None
    ours: Pixels | None
    heat_map: Pixels | None
    caption: str = ""
    engine: Pixels | None = None

    def pictures(self, names: Sequence[str]) -> list[Pixels | None]:
        """The pictures of these names, in their order."""
        there = {"trainer": self.trainer, "engine": self.engine, "ours": self.ours, "difference": self.heat_map}
        return [there[name] for name in names]


def check_cells(rows: int, columns: int) -> None:
    """Raises InputError where a sheet would have no cell, or too many."""
    if not 0 < rows * columns <= MAX_CELLS:
        raise InputError(
            f"A contact sheet of {rows} rows and {columns} columns cannot be made: it has 1 to {MAX_CELLS:,} "
            "cells. Choose fewer checkpoints or samples."
        )


def contact_sheet(
    rows: Sequence[str], columns: Sequence[str], cells: Iterable[Cell], tile: int = 256, *, with_engine: bool = False
) -> Image:
    """Draws a sheet; pictures are scaled down to their tiles, never up.

    Args:
        rows: their labels, e.g. ``step 250``.
        columns: their labels, e.g. prompts; each is cut to its column. Columns that do not fit beside each other go on
            below, under the rows of those before.
        cells: in any order, each drawn before the next one is asked for, so that their pictures need not be in memory
            together. A place without one stays empty.
        tile: the longest side of a picture on the sheet, in pixels; less where the sheet would become too large.
        with_engine: whether cells have the engine's picture between the trainer's and ours.

    Returns:
        RGB, at most 65,500 pixels a side.

    Raises:
        InputError: there is no row or column, there are too many cells, or one is outside the table.
    """
    from PIL import Image, ImageDraw, ImageFont

    layout = _Layout.of(len(rows), len(columns), tile, _WITH_ENGINE if with_engine else _PICTURES)
    sheet = Image.new("RGB", layout.size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(_FONT)
    _draw_labels(draw, layout, rows, columns)
    for cell in cells:
        if not (0 <= cell.row < len(rows) and 0 <= cell.column < len(columns)):
            raise InputError(
                f"Cell {cell.row}, {cell.column} is outside of a sheet of {len(rows)} rows and {len(columns)} columns."
            )
        _draw_cell(sheet, draw, layout, cell)
    return sheet


@dataclass(frozen=True)
class _Layout:
    rows: int
    columns: int
    tile: int
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, rows: int, columns: int, tile: int, pictures: tuple[str, ...]) -> _Layout:
        check_cells(rows, columns)
        cells = rows * columns
        tile = min(tile, math.isqrt(int(_MOST_PIXELS / (cells * len(pictures)))))
        # 2,000 rows leave 12 pixels
        tile = min(tile, (_LONGEST_SIDE - 4 * _LINE) // rows - _LINE - _GAP)
        return cls(rows, columns, max(tile, _LEAST_TILE), pictures)

    @property
    def cell_width(self) -> int:
        return len(self.pictures) * self.tile + _GAP

    @property
    def cell_height(self) -> int:
        return self.tile + _LINE + _GAP

    @property
    def columns_in_band(self) -> int:
        return min(self.columns, max(1, (_BAND - _MARGIN) // self.cell_width))

    @property
    def band_height(self) -> int:
        return 2 * _LINE + self.rows * self.cell_height

    @property
    def size(self) -> tuple[int, int]:
        # narrower, and the legend would be cut
        width = _MARGIN + max(self.columns_in_band * self.cell_width, len(LEGEND) * _LEGEND_STEP)
        return width, _LINE + math.ceil(self.columns / self.columns_in_band) * self.band_height

    def corner(self, row: int, column: int) -> tuple[int, int]:
        band, place = divmod(column, self.columns_in_band)
        y = _LINE + band * self.band_height + 2 * _LINE + row * self.cell_height
        return _MARGIN + place * self.cell_width, y


def _draw_labels(draw: ImageDraw, layout: _Layout, rows: Sequence[str], columns: Sequence[str]) -> None:
    _write(draw, (_GAP, 0), "levels of difference", _MARGIN - _GAP)
    for index, (_, label, colour) in enumerate(LEGEND):
        x = _MARGIN + index * _LEGEND_STEP
        draw.rectangle((x, 2, x + 10, 12), colour, _INK)
        _write(draw, (x + 14, 0), label, _LEGEND_STEP - 14)
    for column, label in enumerate(columns):
        x, y = layout.corner(0, column)
        _write(draw, (x, y - 2 * _LINE), label, layout.cell_width - _GAP)
        for index, name in enumerate(layout.pictures):
            _write(draw, (x + index * layout.tile, y - _LINE), name, layout.tile)
    for first in range(0, len(columns), layout.columns_in_band):
        for row, label in enumerate(rows):
            _write(draw, (_GAP, layout.corner(row, first)[1]), label, _MARGIN - 2 * _GAP)


def _draw_cell(sheet: Image, draw: ImageDraw, layout: _Layout, cell: Cell) -> None:
    from PIL import Image

    left, top = layout.corner(cell.row, cell.column)
    for index, pixels in enumerate(cell.pictures(layout.pictures)):
        x = left + index * layout.tile
        if pixels is None:
            draw.rectangle((x, top, x + layout.tile - 2, top + layout.tile - 1), _EMPTY)
            _write(draw, (x + 2, top), "none", layout.tile - 2)
            continue
        picture = Image.fromarray(pixels)
        picture.thumbnail((layout.tile - 1, layout.tile))
        sheet.paste(picture, (x, top))
    _write(draw, (left, top + layout.tile), cell.caption, layout.cell_width - _GAP)


def _write(draw: ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    """One line of text, cut where it does not fit."""
    # no line is longer than that, and measuring a long prompt letter by letter takes time
    line = " ".join(text[: max(width, 0)].split())
    if line != text or draw.textlength(line) > width:
        # a sheet has thousands of captions: each is measured in halves
        counts = range(1, len(line) + 1)
        letters = bisect_right(counts, width, key=lambda count: draw.textlength(line[:count] + "..."))
        line = line[:letters] + "..." if letters else ""
    draw.text(place, line, _INK)
