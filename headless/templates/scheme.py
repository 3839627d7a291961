"""A template's thumbnail: what goes in, how it is rendered, what comes out; drawn, since no tiny model shows anything.

The browser shows it as a square of about 250 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ...pipelines.models import find_model
from ...pipelines.models.recipe import REFERENCE_PIPELINE, TRAINER_PREVIEW
from .building import YOUR_GGUF, YOUR_PTH

if TYPE_CHECKING:
    from .drawing import Drawing, Node

_SIDE = 512  # what places are counted in
_SCALE = 2  # drawn larger, and scaled down: Pillow's lines have hard edges
_PIXELS = 400  # of the file
_BACK, _CARD, _LINE, _TEXT, _FAINT = "#1b1e24", "#2b303a", "#8b94a5", "#f2f4f8", "#b9c1cf"
# the first words of a name -> its colour
_ACCENTS = {
    "AI Toolkit": "#f0b429", "Compare": "#e07a3f", "Control": "#54b889", "Image": "#54b889", "LoRA": "#a98bf0",
    "Options": "#4fb3c9", "Server": "#4fb3c9", "Text": "#5b9bf0", "ComfyUI": "#9aa5b8", "GGUF": "#9aa5b8",
    "All-in-one": "#9aa5b8", "pth": "#9aa5b8",
}  # fmt: skip
_ROW = 150  # centre of the symbols of what goes in
_BAR = (262, 330)  # top and bottom of the box that renders
_OUT = (376, 492)  # top and bottom of the pictures that come out


@dataclass(frozen=True)
class _Input:
    """A symbol of the first row: how it is drawn, and the word below it."""

    draw: Callable[[_Pen, float, float], None]
    word: str


class _Pen:
    """Draws in units of a square of ``_SIDE``."""

    def __init__(self, accent: str) -> None:
        self.image = Image.new("RGB", (_SIDE * _SCALE, _SIDE * _SCALE), _BACK)
        self.accent = accent
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, place: tuple[float, float, float, float], *, fill: str = _CARD, line: str = "", round: float = 10
    ) -> None:
        """A rectangle from left, top to right, bottom."""
        corners = [value * _SCALE for value in place]
        self._draw.rounded_rectangle(corners, round * _SCALE, fill, line or None, 3 * _SCALE if line else 0)

    def line(self, *points: tuple[float, float], color: str = _LINE, width: float = 4) -> None:
        self._draw.line([(x * _SCALE, y * _SCALE) for x, y in points], color, round(width * _SCALE), "curve")

    def shape(self, *points: tuple[float, float], fill: str) -> None:
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill)

    def disc(self, x: float, y: float, radius: float, *, fill: str) -> None:
        self._draw.ellipse([(value * _SCALE) for value in (x - radius, y - radius, x + radius, y + radius)], fill)

    def text(self, x: float, y: float, words: str, size: float, color: str = _TEXT, widest: float = _SIDE - 32) -> None:
        """Words around a point, smaller where they would be wider than they may."""
        font = ImageFont.load_default(size * _SCALE)
        found = font.getlength(words) / _SCALE
        if found > widest:
            font = ImageFont.load_default(size * _SCALE * widest / found)
        self._draw.text((x * _SCALE, y * _SCALE), words, color, font, "mm")


def thumbnail(drawing: Drawing) -> Image.Image:
    """The picture of a template."""
    pen = _Pen(next(color for words, color in _ACCENTS.items() if drawing.name.startswith(words)))
    pen.box((0, 0, _SIDE, 62), fill=pen.accent, round=0)
    pen.text(_SIDE / 2, 32, _title(drawing), 38, _BACK)
    bars, inputs = _bars(drawing), _inputs(drawing)
    xs = _spread(len(inputs), 118)
    for x, one in zip(xs, inputs, strict=True):
        pen.line((x, _ROW + 62), (x, _BAR[0] - 24), (_SIDE / 2, _BAR[0] - 24), (_SIDE / 2, _BAR[0]))
        one.draw(pen, x, _ROW - 16)
        pen.text(x, _ROW + 50, one.word, 26, _FAINT, 112)
    width = 440 / len(bars)
    for x, words in zip(_spread(len(bars), width + 12), bars, strict=True):
        pen.line((x, _BAR[1]), (x, _OUT[0]))
        pen.shape((x - 10, _OUT[0] - 12), (x + 10, _OUT[0] - 12), (x, _OUT[0] - 2), fill=_LINE)
        pen.box((x - width / 2, _BAR[0], x + width / 2, _BAR[1]), line=pen.accent)
        pen.text(x, sum(_BAR) / 2, words, 32, widest=width - 16)
    _result(pen, drawing)
    return pen.image.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)


def _of(drawing: Drawing, *kinds: str) -> list[Node]:
    return [node for node in drawing.nodes if node.kind in kinds]


def _title(drawing: Drawing) -> str:
    loaders = _of(drawing, "LoadAITKModel")
    return find_model(loaders[0].values["model"]).title if loaders else "Training job"


def _bars(drawing: Drawing) -> list[str]:
    """What renders: the recipes, in the user's words."""
    words = {TRAINER_PREVIEW: "as AI Toolkit draws", REFERENCE_PIPELINE: "as the model's page says"}
    recipes = [node.values["recipe"] for node in _of(drawing, "AITKSampler")]
    if len(recipes) > 1:
        return ["model's page", "AI Toolkit"]
    return [words.get(recipe, f"as {recipe} draws") for recipe in recipes] or ["replay every sample"]


def _inputs(drawing: Drawing) -> list[_Input]:
    """What goes in, the model first; at most four."""
    found = [_Input(_folder, "job folder") for _ in _of(drawing, "AITKTrainingJob")]
    for node in _of(drawing, "LoadAITKModel"):
        found.append(_Input(_cube, _weights(node)))
    if not _of(drawing, "ApplyAITKLoRA"):
        found += [_Input(_chip, "memory") for _ in _of(drawing, "AITKRuntimeOptions")]
    found += [_Input(_sliders, "options") for _ in _of(drawing, "AITKRecipeOptions")]
    for kind in ("AITKTrainingAdapter", "AITKRecoveryAdapter"):
        found += [_Input(_layers, "adapter") for _ in _of(drawing, kind)]
    found += [_Input(_layers, "your LoRA") for _ in _of(drawing, "ApplyAITKLoRA")]
    for _ in _of(drawing, "AITKLoRAStack"):
        found += [_Input(_layers, "LoRA 1"), _Input(_layers, "LoRA 2"), _Input(_layers, "LoRA 3")]
    if not _of(drawing, "AITKComparePreviews"):
        count = len(_of(drawing, "LoadImage"))
        words = ["picture"] if count == 1 else [f"image {number}" for number in range(1, count + 1)]
        found += [_Input(_small_picture, word) for word in words]
    if len(found) < 4 and _of(drawing, "AITKSampler"):
        found.append(_Input(_page, "prompt"))
    return found


def _weights(node: Node) -> str:
    """What the loader is given."""
    name = str(node.values["weights"])
    if name in ("default", YOUR_GGUF, YOUR_PTH):
        return {"default": "model", YOUR_GGUF: "GGUF file", YOUR_PTH: "pth file"}[name]
    return "one file" if node.values["vae"] == "default" else "3 files"


def _result(pen: _Pen, drawing: Drawing) -> None:
    top, bottom = _OUT
    if _of(drawing, "AITKReplayPreviews"):
        for row in (0, 1):
            for x in _spread(5, 92):
                _picture(pen, x - 40, top + row * 60, x + 40, top + row * 60 + 54)
    elif _of(drawing, "AITKComparePreviews"):
        for x in (_SIDE / 2 - 132, _SIDE / 2 + 132):
            _picture(pen, x - 88, top, x + 88, bottom)
        pen.text(_SIDE / 2, (top + bottom) / 2, "= ?", 56, pen.accent)
    else:
        _picture(pen, _SIDE / 2 - 100, top, _SIDE / 2 + 100, bottom)


def _spread(count: int, step: float) -> Sequence[float]:
    """Places beside each other around the middle."""
    return [_SIDE / 2 + (index - (count - 1) / 2) * step for index in range(count)]


# ---- symbols, each about 80 pixels high around its point ------------------------------------------------------------


def _picture(pen: _Pen, left: float, top: float, right: float, bottom: float) -> None:
    """A landscape in a frame."""
    width, height = right - left, bottom - top
    pen.box((left, top, right, bottom), fill="#39414f", line=_LINE, round=6)
    pen.disc(left + width * 0.72, top + height * 0.3, height * 0.12, fill=_TEXT)
    floor = bottom - 4
    near, far = (left + width * 0.36, top + height * 0.32), (left + width * 0.7, top + height * 0.56)
    pen.shape((left + 5, floor), near, (left + width * 0.68, floor), fill=pen.accent)
    pen.shape((left + width * 0.46, floor), far, (right - 5, floor), fill=_FAINT)


def _small_picture(pen: _Pen, x: float, y: float) -> None:
    _picture(pen, x - 46, y - 36, x + 46, y + 36)


def _cube(pen: _Pen, x: float, y: float) -> None:
    """The model: a block of weights."""
    pen.shape((x, y - 42), (x + 40, y - 20), (x, y + 2), (x - 40, y - 20), fill=pen.accent)
    pen.shape((x - 40, y - 14), (x - 3, y + 6), (x - 3, y + 46), (x - 40, y + 26), fill=_FAINT)
    pen.shape((x + 40, y - 14), (x + 3, y + 6), (x + 3, y + 46), (x + 40, y + 26), fill=_LINE)


def _layers(pen: _Pen, x: float, y: float) -> None:
    """A LoRA: thin layers over each other."""
    for offset, fill in ((20, _LINE), (0, _FAINT), (-20, pen.accent)):
        pen.shape((x, y + offset - 22), (x + 46, y + offset), (x, y + offset + 22), (x - 46, y + offset), fill=_BACK)
        pen.shape((x, y + offset - 18), (x + 40, y + offset), (x, y + offset + 18), (x - 40, y + offset), fill=fill)


def _page(pen: _Pen, x: float, y: float) -> None:
    """The prompt: a page with lines."""
    pen.box((x - 34, y - 42, x + 34, y + 42), fill=_CARD, line=_LINE)
    for offset, end in ((-22, 20), (-4, 20), (14, 4)):
        pen.line((x - 20, y + offset), (x + end, y + offset), color=pen.accent, width=6)


def _folder(pen: _Pen, x: float, y: float) -> None:
    pen.box((x - 46, y - 36, x + 2, y), fill=_LINE, round=6)
    pen.box((x - 46, y - 24, x + 46, y + 38), fill=pen.accent, round=6)


def _chip(pen: _Pen, x: float, y: float) -> None:
    """Memory: a chip with its pins."""
    for offset in (-22, 0, 22):
        pen.line((x - 44, y + offset), (x + 44, y + offset), width=6)
        pen.line((x + offset, y - 44), (x + offset, y + 44), width=6)
    pen.box((x - 32, y - 32, x + 32, y + 32), fill=pen.accent, round=6)


def _sliders(pen: _Pen, x: float, y: float) -> None:
    for offset, knob in ((-26, 16), (0, -18), (26, 4)):
        pen.line((x - 40, y + offset), (x + 40, y + offset), width=6)
        pen.disc(x + knob, y + offset, 11, fill=pen.accent)
