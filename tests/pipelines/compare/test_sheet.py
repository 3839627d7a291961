"""The contact sheet: every picture in its place, of any number up to the most."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from comfyui_aitk.pipelines.compare.sheet import Cell, Column, contact_sheet
from comfyui_aitk.pipelines.errors import InputError

COLOURS = {"trainer": (200, 0, 0), "ours": (0, 200, 0), "heat_map": (0, 0, 200)}
PICTURES = {name: np.full((40, 40, 3), colour, np.uint8) for name, colour in COLOURS.items()}


def places(sheet: np.ndarray, name: str) -> np.ndarray:
    """Where a picture's pixels are, as rows of (y, x)."""
    return np.argwhere((sheet == COLOURS[name]).all(axis=2))


def drawn(row: int, column: int) -> np.ndarray:
    cells = [Cell(row, column, **PICTURES)]
    return np.asarray(contact_sheet(["step 0", "step 250"], [Column("a fox", 40, 40), Column("a cat", 40, 40)], cells))


def test_pictures_stand_beside_each_other_in_their_cell():
    sheet = drawn(1, 0)
    boxes = {name: places(sheet, name) for name in COLOURS}
    assert all(len(box) == 40 * 40 for box in boxes.values()), "every pixel, and none between"
    assert len({box[:, 0].min() for box in boxes.values()}) == 1
    left, middle, right = (box[:, 1].min() for box in boxes.values())
    assert middle - left == right - middle == 66, "room for the word difference"
    top, first = places(drawn(0, 1), "trainer").min(axis=0)
    assert top < boxes["trainer"][:, 0].min()
    assert first > boxes["heat_map"][:, 1].max()


def test_labels_are_drawn_and_a_missing_picture_leaves_a_field():
    plain, long = Column("", 40, 40), Column("a prompt that is longer than its column " * 20, 40, 40)
    bare = np.asarray(contact_sheet([""], [plain], []))
    labelled = np.asarray(contact_sheet(["step 250"], [long], []))
    captioned = np.asarray(contact_sheet([""], [plain], [Cell(0, 0, None, None, None, "identical")]))
    assert bare.shape == labelled.shape == captioned.shape
    assert (bare != labelled).any(axis=2).sum() > 100
    assert (captioned == (225, 225, 225)).all(axis=2).sum() > 3000


@pytest.mark.parametrize(
    ("width", "height", "cells", "largest", "font"),
    # few pictures as they are, many down to 256 pixels; text grows with them
    [
        (64, 64, 1, 64, 12),
        (64, 64, 60, 64, 12),
        (1024, 1024, 1, 1024, 24),
        (1024, 768, 12, 471, 24),
        (1024, 1024, 60, 256, 16),
    ],
)
def test_pictures_have_the_room_that_they_need(width, height, cells, largest, font):
    """As wide and high as its pictures, with their names and a margin, and no wider."""
    sheet = contact_sheet(["step"] * cells, [Column("prompt", width, height)], [])
    scale = largest / max(width, height)
    slot, line = max(66, round(width * scale) + 2), font * 4 // 3
    assert sheet.width == 11 * font + max(3 * slot + 4, 9 * (font * 16 // 3))
    assert sheet.height == 3 * line + cells * (round(height * scale) + line + 4)


def test_columns_are_as_wide_as_their_own_pictures():
    columns = [Column("wide", 192, 64), Column("high", 64, 192), Column("small", 64, 64)]
    cells = [
        Cell(0, index, *[np.full((one.height, one.width, 3), (200, 0, index), np.uint8)] * 3)
        for index, one in enumerate(columns)
    ]
    sheet = np.asarray(contact_sheet(["step"], columns, cells))
    lefts = []
    for index, one in enumerate(columns):
        found = np.argwhere((sheet == (200, 0, index)).all(axis=2))
        assert len(found) == 3 * one.width * one.height, "none is scaled, and none covers another"
        lefts.append(found[:, 1].min())
    assert list(np.diff(lefts)) == [3 * 194 + 4, 3 * 66 + 4]


@pytest.mark.parametrize(("rows", "columns"), [(50, 40), (2000, 1), (1, 2000), (1000, 2)])
@pytest.mark.parametrize("side", [40, 2048])
def test_two_thousand_cells_fit(rows, columns, side):
    sheet = contact_sheet(
        ["step"] * rows, [Column("prompt", side, side)] * columns, [Cell(rows - 1, columns - 1, **PICTURES)]
    )
    assert max(sheet.size) <= 65_500
    assert sheet.width * sheet.height < 50e6
    assert all(len(places(np.asarray(sheet)[-200:], name)) > 100 for name in COLOURS)


def test_a_picture_is_let_go_once_it_is_drawn():
    alive: list[weakref.ref] = []

    def cells():
        for row in range(50):
            picture = np.zeros((60, 60, 3), np.uint8)
            alive.append(weakref.ref(picture))
            yield Cell(row, 0, picture, picture, picture)
            del picture
            assert sum(one() is not None for one in alive) <= 1

    contact_sheet(["step"] * 50, [Column("prompt", 60, 60)], cells())
    assert len(alive) == 50


@pytest.mark.parametrize(
    ("rows", "columns", "cells", "message"),
    [
        (0, 3, [], "0 rows and 3 columns cannot be made"),
        (2001, 1, [], "2001 rows and 1 columns cannot be made: it has 1 to 2,000 cells"),
        (1, 1, [Cell(0, 1, None, None, None)], "Cell 0, 1 is outside of a sheet of 1 rows and 1 columns"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused(rows, columns, cells, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(["x"] * rows, [Column("x", 64, 64)] * columns, cells)
