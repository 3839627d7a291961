"""Draws ``icon.png`` and ``banner.png``, which the registry shows: two mosaics that are one picture.

    .venv/bin/python docs/pictures/logo.py

The registry asks for an icon of at most 400 x 400 and a banner of 21:9.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ICON, BANNER = (400, 400), (1680, 720)
NIGHT, LIGHT, SOFT = "#14161b", "#f4f5f7", "#9aa3b0"
# a fox, in rows of cells: ears, forehead, eyes, cheeks, snout
MOSAIC = ("o...o", "ooOoo", "OnOnO", "WWOWW", ".WnW.")
COLOURS = {"o": "#f0782d", "O": "#ff9a4d", "W": "#f7ead9", "n": "#3a2a3f", ".": "#2b3350"}
FINE = 2  # drawn so many times larger, for smooth corners


def mosaic(cell: int) -> Image.Image:
    """The picture that both sides show."""
    picture = Image.new("RGB", (cell * len(MOSAIC[0]), cell * len(MOSAIC)))
    pen = ImageDraw.Draw(picture)
    for row, cells in enumerate(MOSAIC):
        for column, kind in enumerate(cells):
            pen.rectangle((column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1), COLOURS[kind])
    return picture


def mark(side: int) -> Image.Image:
    """Two equal mosaics with the sign between them, on a rounded square."""
    drawn = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(drawn)
    pen.rounded_rectangle((0, 0, side - 1, side - 1), side // 6, NIGHT)
    fox = mosaic(side * 72 // 1000)
    top, margin = (side - fox.height) // 2, side * 6 // 100
    drawn.paste(fox, (margin, top))
    drawn.paste(fox, (side - margin - fox.width, top))
    for level in (-1, 1):
        middle = side // 2 + level * side // 22
        half, thick = side * 5 // 100, side // 50
        pen.rectangle((side // 2 - half, middle - thick, side // 2 + half, middle + thick), LIGHT)
    return drawn


def icon() -> Image.Image:
    return mark(FINE * ICON[0]).resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    drawn = Image.new("RGB", BANNER, NIGHT)
    sign = mark(FINE * 520).resize((520, 520), Image.Resampling.LANCZOS)
    drawn.paste(sign, (80, 100), sign)
    pen = ImageDraw.Draw(drawn)
    pen.text((680, 190), "AITK", LIGHT, ImageFont.load_default(170))
    pen.text((686, 390), "AI Toolkit's sample previews in ComfyUI,", SOFT, ImageFont.load_default(46))
    pen.text((686, 452), "equal to the pixel", SOFT, ImageFont.load_default(46))
    return drawn


if __name__ == "__main__":
    folder = Path(__file__).parent
    icon().save(folder / "icon.png", optimize=True)
    banner().save(folder / "banner.png", optimize=True)
