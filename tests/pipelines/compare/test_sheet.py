"""The contact sheet: every picture in its place, of any number up to the most."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from comfyui_aitk.pipelines.compare.sheet import Cell, contact_sheet
from comfyui_aitk.pipelines.errors import InputError

COLOURS = {"trainer": (200, 0, 0), "ours": (0, 200, 0), "heat_map": (0, 0, 200)}
PICTURES = {name: np.full((40, 40, 3), colour, np.uint8) for name, colour in COLOURS.items()}


def places(sheet: np.ndarray, name: str) -> np.ndarray:
    """Where a picture's pixels are, as rows of (y, x)."""
    return np.argwhere((sheet == COLOURS[name]).all(axis=2))


def drawn(row: int, column: int) -> np.ndarray:
    cells = [Cell(row, column, **PICTURES)]
    return np.asarray(contact_sheet(["step 0", "step 250"], ["a fox", "a cat"], cells, 40))


def test_pictures_stand_beside_each_other_in_their_cell():
    sheet = drawn(1, 0)
    boxes = {name: places(sheet, name) for name in COLOURS}
    assert all(len(box) > 30 * 30 for box in boxes.values())
    assert len({box[:, 0].min() for box in boxes.values()}) == 1
    left, middle, right = (box[:, 1].min() for box in boxes.values())
    assert middle - left == right - middle == 40
    top, first = places(drawn(0, 1), "trainer").min(axis=0)
    assert top < boxes["trainer"][:, 0].min()
    assert first > boxes["heat_map"][:, 1].max()


def test_labels_are_drawn_and_a_missing_picture_leaves_a_field():
    bare = np.asarray(contact_sheet([""], [""], [], 40))
    labelled = np.asarray(contact_sheet(["step 250"], ["a prompt that is longer than its column " * 20], [], 40))
    captioned = np.asarray(contact_sheet([""], [""], [Cell(0, 0, None, None, None, "identical")], 40))
    assert bare.shape == labelled.shape == captioned.shape
    assert (bare != labelled).any(axis=2).sum() > 100
    assert (captioned == (225, 225, 225)).all(axis=2).sum() > 3000


@pytest.mark.parametrize(("rows", "columns"), [(50, 40), (2000, 1), (1, 2000), (1000, 2)])
def test_two_thousand_cells_fit(rows, columns):
    sheet = contact_sheet(["step"] * rows, ["prompt"] * columns, [Cell(rows - 1, columns - 1, **PICTURES)])
    assert max(sheet.size) <= 65_500
    assert sheet.width * sheet.height < 70e6
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

    contact_sheet(["step"] * 50, ["prompt"], cells())
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
        contact_sheet(["x"] * rows, ["x"] * columns, cells)
