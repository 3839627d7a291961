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
# few pictures are drawn larger than many: up to so many pixels of all, and so many from left to right
_USUAL_PIXELS, _USUAL_WIDTH = 8e6, 4096
_USUAL_SIDE = 256  # pixels; smaller only where there would be more than _MOST_PIXELS
_MOST_PIXELS = 40e6  # 120 MB as RGB
_LONGEST_SIDE = 65_500  # pixels; libjpeg's
_BAND = 16_384  # pixels; what is wider goes on below
_LEAST_SIDE = 12  # pixels
_LEAST_SLOT = 66  # pixels; of a picture, so that its name fits in the smallest font
_FONTS = 12, 24  # pixels: the smallest, and that of the largest pictures
_GAP = 4  # pixels
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


@dataclass(frozen=True)
class Column:
    """A column of a sheet.

    Attributes:
        label: e.g. a prompt; cut to the column.
        width, height: of its pictures in pixels, of the largest where they differ.
    """

    label: str
    width: int
    height: int


def check_cells(rows: int, columns: int) -> None:
    """Raises InputError where a sheet would have no cell, or too many."""
    if not 0 < rows * columns <= MAX_CELLS:
        raise InputError(
            f"A contact sheet of {rows} rows and {columns} columns cannot be made: it has 1 to {MAX_CELLS:,} "
            "cells. Choose fewer checkpoints or samples."
        )


def contact_sheet(
    rows: Sequence[str], columns: Sequence[Column], cells: Iterable[Cell], *, with_engine: bool = False
) -> Image:
    """Draws a sheet; pictures are scaled down where all would become too large, never up.

    Args:
        rows: their labels, e.g. ``step 250``.
        columns: those that do not fit beside each other go on below, under the rows of those before.
        cells: in any order, each drawn before the next one is asked for, so that their pictures need not be in memory
            together. A place without one stays empty.
        with_engine: whether cells have the engine's picture between the trainer's and ours.

    Returns:
        RGB, at most 65,500 pixels a side.

    Raises:
        InputError: there is no row or column, there are too many cells, or one is outside the table.
    """
    from PIL import Image, ImageDraw, ImageFont

    layout = _Layout.of(len(rows), columns, _WITH_ENGINE if with_engine else _PICTURES)
    sheet = Image.new("RGB", layout.size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(layout.font)
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
    """Where everything is.

    Attributes:
        rows: how many.
        sides: width and height that a picture has room for, of each column.
        places: of each column: its band, and how far it is from the left.
        width: of the widest band, without the margin.
        font: pixels; larger beside larger pictures, which are seen from farther away.
        pictures: names of those of each cell, from left to right.
    """

    rows: int
    sides: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int], ...]
    width: int
    font: int
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, rows: int, columns: Sequence[Column], pictures: tuple[str, ...]) -> _Layout:
        check_cells(rows, len(columns))
        wide, cells = len(columns) * len(pictures), rows * len(columns)
        usual = min(math.isqrt(int(_USUAL_PIXELS / (cells * len(pictures)))), _USUAL_WIDTH // wide)
        side = min(max(usual, _USUAL_SIDE), max(max(column.width, column.height) for column in columns))
        layout = cls._with(rows, columns, pictures, side)
        while side > _LEAST_SIDE and not layout._fits:
            side = max(_LEAST_SIDE, int(side * 0.95))
            layout = cls._with(rows, columns, pictures, side)
        return layout

    @classmethod
    def _with(cls, rows: int, columns: Sequence[Column], pictures: tuple[str, ...], side: int) -> _Layout:
        """With pictures of at most ``side`` pixels a side."""
        scales = [min(1.0, side / max(column.width, column.height)) for column in columns]
        sides = tuple(
            (max(1, round(column.width * scale)), max(1, round(column.height * scale)))
            for column, scale in zip(columns, scales, strict=True)
        )
        font = min(max(side // 16, _FONTS[0]), _FONTS[1])
        places, band, x, widest = [], 0, 0, 0
        for width, _ in sides:
            cell = len(pictures) * _slot(width, font) + _GAP
            if x and _margin(font) + x + cell > _BAND:
                band, x = band + 1, 0
            places.append((band, x))
            x += cell
            widest = max(widest, x)
        return cls(rows, sides, tuple(places), widest, font, pictures)

    @property
    def _fits(self) -> bool:
        return self.size[1] <= _LONGEST_SIDE and self.size[0] * self.size[1] <= _MOST_PIXELS

    @property
    def line(self) -> int:
        """Of text, in pixels."""
        return self.font * 4 // 3

    @property
    def margin(self) -> int:
        """For the rows' labels, in pixels."""
        return _margin(self.font)

    @property
    def legend_step(self) -> int:
        return self.font * 16 // 3

    @property
    def cell_height(self) -> int:
        return max(height for _, height in self.sides) + self.line + _GAP

    @property
    def band_height(self) -> int:
        return 2 * self.line + self.rows * self.cell_height

    @property
    def size(self) -> tuple[int, int]:
        # narrower, and the legend would be cut
        width = self.margin + max(self.width, len(LEGEND) * self.legend_step)
        return width, self.line + (self.places[-1][0] + 1) * self.band_height

    def corner(self, row: int, column: int) -> tuple[int, int]:
        band, x = self.places[column]
        return self.margin + x, 3 * self.line + band * self.band_height + row * self.cell_height

    def slot(self, column: int) -> int:
        """From one picture of a cell to the next."""
        return _slot(self.sides[column][0], self.font)


def _margin(font: int) -> int:
    return font * 11


def _slot(width: int, font: int) -> int:
    return max(_LEAST_SLOT * font // _FONTS[0], width + 2)


def _draw_labels(draw: ImageDraw, layout: _Layout, rows: Sequence[str], columns: Sequence[Column]) -> None:
    margin, step, line, font = layout.margin, layout.legend_step, layout.line, layout.font
    _write(draw, (_GAP, 0), "levels of difference", margin - _GAP)
    for index, (_, label, colour) in enumerate(LEGEND):
        x = margin + index * step
        draw.rectangle((x, 2, x + font - 2, font), colour, _INK)
        _write(draw, (x + font + 2, 0), label, step - font - 2)
    for index, column in enumerate(columns):
        (x, y), slot = layout.corner(0, index), layout.slot(index)
        _write(draw, (x, y - 2 * line), column.label, len(layout.pictures) * slot - _GAP)
        for place, name in enumerate(layout.pictures):
            _write(draw, (x + place * slot, y - line), name, slot)
    for first in (index for index, (_, x) in enumerate(layout.places) if x == 0):
        for row, label in enumerate(rows):
            _write(draw, (_GAP, layout.corner(row, first)[1]), label, margin - 2 * _GAP)


def _draw_cell(sheet: Image, draw: ImageDraw, layout: _Layout, cell: Cell) -> None:
    from PIL import Image

    (left, top), slot, side = layout.corner(cell.row, cell.column), layout.slot(cell.column), layout.sides[cell.column]
    for index, pixels in enumerate(cell.pictures(layout.pictures)):
        x = left + index * slot
        if pixels is None:
            draw.rectangle((x, top, x + side[0] - 1, top + side[1] - 1), _EMPTY)
            _write(draw, (x + 2, top), "none", side[0] - 2)
            continue
        picture = Image.fromarray(pixels)
        picture.thumbnail(side)
        sheet.paste(picture, (x, top))
    _write(draw, (left, top + side[1]), cell.caption, len(layout.pictures) * slot - _GAP)


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
