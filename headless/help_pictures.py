"""The pictures of the help pages: how each node is wired, and the settings that matter.

    .venv/bin/python -c "import tasks; tasks.load_pack(); from comfyui_aitk.headless.help_pictures import main; main()"

draws them anew. They are twice as wide as the editor's help panel leaves room for, so that they are sharp in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..nodes import NODE_DISPLAY_NAME_MAPPINGS

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    Figure = Callable[[Image, int], int]

DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"
NAME = "wiring.png"
WIDTH = 564  # pixels; the panel leaves a page 282 at its default width
_COLOURS = 64  # of the file; text stays smooth
_EDGE, _LEFT, _LINE, _HEAD, _WIRE, _PAD = 14, 30, 40, 50, 52, 18  # pixels
_GROUND, _BOX, _TITLE, _LABEL, _VALUE = "#17181c", "#2b2d34", "#ffffff", "#b4b8c2", "#ffffff"
_THIS, _THIS_HEAD, _MARK = "#4c9bff", "#23395b", "#2f62a8"
_PIPELINE, _IMAGE, _LATENT, _OPTIONS, _CONTROL, _JOB, _TEXT = (
    "#b48ef2", "#64b5f6", "#ff9cf9", "#d9a05f", "#5fb3d9", "#6fbf8b", "#b4b8c2",
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A node.

    Attributes:
        title: what stands in its head.
        rows: its widgets, as ``name: value``. One that begins with ``*`` is the one to set.
    """

    title: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wire:
    """What goes from the box above to the one below."""

    name: str
    colour: str


def _box(node: str, *rows: str) -> Box:
    return Box(NODE_DISPLAY_NAME_MAPPINGS[node], rows)


_LOAD = _box("LoadAITKModel")
_ASK = Wire("pipeline", _PIPELINE)
_PICTURES = Wire("image, report", _IMAGE)
_SAMPLE, _SAVE = _box("AITKSampler"), _box("AITKSaveImage")


def _tile(seed: int, shift: int = 0, ground: str = "#7fa6c9") -> Image:
    """A drawn landscape that stands for somebody's picture."""
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (160, 160), ground)
    draw = ImageDraw.Draw(tile)
    draw.ellipse((96 - shift, 18, 132 - shift, 54), "#ffe9a8")
    draw.polygon([(-20, 160), (40 + 30 * seed, 62 - shift), (120 + 20 * seed, 160)], "#4a5d6e")
    draw.polygon([(50, 160), (118 - 25 * seed + shift, 84), (190, 160)], "#3a4a58")
    draw.rectangle((0, 132, 160, 160), "#5d7f52")
    return tile


def _row_of(tiles: list[tuple[str, Image]]) -> Figure:
    """Pictures beside each other, each with a word below."""

    def figure(picture: Image, top: int) -> int:
        from PIL import ImageDraw

        draw = ImageDraw.Draw(picture)
        for place, (word, tile) in enumerate(tiles):
            left = _LEFT + place * 172
            picture.paste(tile, (left, top))
            draw.text((left + 80, top + 166), word, _LABEL, _font(20), anchor="ma")
        return 200

    return figure


def _comparison(picture: Image, top: int) -> int:
    """A pair and its heat map, as the node itself computes it."""
    import numpy as np
    from PIL import Image

    from ..pipelines.compare.comparison import compare_as

    ours, trainer = _tile(1, 3), _tile(1)
    found = compare_as(np.asarray(ours), np.asarray(trainer), "png", None)
    assert found.heat_map is not None
    return _row_of([("trainer", trainer), ("ours", ours), ("heat_map", Image.fromarray(found.heat_map))])(picture, top)


def _memory(picture: Image, top: int) -> int:
    """Where the blocks of a transformer lie when it is larger than the card."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    for left, right, word in ((_LEFT, 272, "computer's memory"), (292, WIDTH - _LEFT, "GPU")):
        draw.rounded_rectangle((left, top + 28, right, top + 168), 8, outline=_LABEL, width=2)
        draw.text((left + 2, top), word, _LABEL, _font(20))
    for place in range(20):
        left, above = _LEFT + 20 + place % 5 * 42, top + 42 + place // 5 * 30
        stays = place < 8
        draw.rectangle((left, above, left + 32, above + 20), "#6d6490" if stays else _OPTIONS)
        if stays:
            draw.rectangle((left + 262, above, left + 294, above + 20), _PIPELINE)
    draw.rectangle((312, top + 132, 344, top + 152), _OPTIONS)
    draw.line((252, top + 142, 306, top + 142), _OPTIONS, 4)
    draw.polygon([(300, top + 134), (312, top + 142), (300, top + 150)], _OPTIONS)
    draw.text((352, top + 131), "in turn", _OPTIONS, _font(20))
    return 182


# node -> what stands above each other: boxes, the wires between them, and drawings
SCHEMES: dict[str, tuple[Box | Wire | Figure, ...]] = {
    "LoadAITKModel": (
        _box("LoadAITKModel", "*model: zimage:turbo", "*weights: default"),
        _ASK,
        _box("ApplyAITKLoRA", "lora_name: my_lora.safetensors"),
        _ASK,
        _SAMPLE,
        _PICTURES,
        _SAVE,
    ),
    "AITKRuntimeOptions": (
        _box("AITKRuntimeOptions", "*transformer as: qfloat8", "*text encoder as: qfloat8"),
        Wire("options", _OPTIONS),
        _box("LoadAITKModel", "model: flux2"),
        _memory,
    ),
    "ApplyAITKLoRA": (
        _LOAD,
        _ASK,
        _box("ApplyAITKLoRA", "*lora_name: my_lora.safetensors", "strength: 1.0"),
        Wire("pipeline, trigger_word", _PIPELINE),
        _box("AITKSampler", "*render as (recipe): trainer preview", "prompt: a photo of [trigger]"),
    ),
    "AITKLoRAStack": (
        _LOAD,
        _ASK,
        _box(
            "AITKLoRAStack",
            "*lora_1: style.safetensors",
            "strength_1: 0.8",
            "on_1: on",
            "*lora_2: person.safetensors",
            "on_2: off",
        ),
        Wire("pipeline, trigger_words", _PIPELINE),
        _SAMPLE,
    ),
    "AITKControlImages": (
        _row_of([("image_1", _tile(0)), ("image_2", _tile(1)), ("image_3", _tile(2))]),
        Wire("IMAGE", _IMAGE),
        _box("AITKControlImages"),
        Wire("control", _CONTROL),
        _box("AITKSampler", "*render as (recipe): trainer preview", "prompt: the hill of image 2 ..."),
    ),
    "AITKSampler": (
        _box("LoadAITKModel", "model: the one you trained on"),
        _ASK,
        _box("ApplyAITKLoRA", "lora_name: my_lora.safetensors"),
        Wire("pipeline, trigger_word", _PIPELINE),
        _box("AITKSampler", "*render as (recipe): trainer preview", "*prompt, steps, seed: the job's"),
        _PICTURES,
        _SAVE,
    ),
    "AITKSaveImage": (
        _SAMPLE,
        _PICTURES,
        _box("AITKSaveImage", "*format: png", "filename_prefix: aitk"),
        Wire("on the disk", _TEXT),
        Box("aitk_00001_.png", ("pixels", "prompt, workflow", "aitk_report")),
    ),
    "AITKRecipeOptions": (
        _box("AITKRecipeOptions", "*cfg_trunc_ratio: 0.25", "renorm_cfg: 1.0"),
        Wire("recipe_options", "#d9c65f"),
        _box("AITKSampler", "*render as (recipe): sd-scripts"),
    ),
    "AITKTrainingAdapter": (
        _box("LoadAITKModel", "*model: zimage:turbo"),
        _ASK,
        _box("AITKTrainingAdapter", "*adapter_name: ..._adapter_v2"),
        _ASK,
        _box("ApplyAITKLoRA", "lora_name: my_lora.safetensors"),
        _ASK,
        _box("AITKSampler", "*render as (recipe): trainer preview"),
    ),
    "AITKRecoveryAdapter": (
        _box("LoadAITKModel", "weights: default"),
        _ASK,
        _box("AITKRecoveryAdapter", "*adapter_name: ..._uint3", "*qtype: uint3"),
        _ASK,
        _box("ApplyAITKLoRA", "lora_name: my_lora.safetensors"),
        _ASK,
        _box("AITKSampler", "*render as (recipe): trainer preview"),
    ),
    "AITKComparePreviews": (
        Box("AITK Sampler  and  Load Image"),
        Wire("ours, trainer", _IMAGE),
        _box("AITKComparePreviews", "*format: the job's sample.format"),
        Wire("heat_map, contact_sheet, report", _IMAGE),
        _comparison,
    ),
    "AITKTrainingJob": (
        Box("AI Toolkit's output/my_lora", ("config.yaml, samples", "my_lora_000000250.safetensors")),
        Wire("on the disk", _TEXT),
        _box("AITKTrainingJob", "*job: my_lora", "weights: default"),
        Wire("job, pipeline", _JOB),
        _box("AITKReplayPreviews", "checkpoints: last"),
    ),
    "AITKReplayPreviews": (
        _box("AITKTrainingJob", "job: my_lora"),
        Wire("job, pipeline", _JOB),
        _box("AITKReplayPreviews", "*checkpoints: last", "samples: all", "strengths: 1.0"),
        Wire("contact_sheet", _IMAGE),
        Box("Preview Image"),
    ),
    "AITKEncodeImage": (
        Box("Load Image  and  Load AITK Model"),
        Wire("images, pipeline", _IMAGE),
        _box("AITKEncodeImage", "*recipe: as on the sampler"),
        Wire("latent", _LATENT),
        _box("AITKSampler", "*denoise: 0.5"),
    ),
    "AITKDecodeLatent": (
        _SAMPLE,
        Wire("latent", _LATENT),
        Box("a node that changes the latent"),
        Wire("latent", _LATENT),
        _box("AITKDecodeLatent", "*recipe: as on the sampler"),
        Wire("image", _IMAGE),
        Box("Preview Image"),
    ),
}


def draw(node: str) -> Image:
    """The picture of a node's page."""
    from PIL import Image

    canvas = Image.new("RGB", (WIDTH, 2000), _GROUND)
    top = _PAD
    for part in SCHEMES[node]:
        if isinstance(part, Box):
            top += _draw_box(canvas, part, top, this=part.title == NODE_DISPLAY_NAME_MAPPINGS[node])
        elif isinstance(part, Wire):
            top += _draw_wire(canvas, part, top)
        else:
            top += _EDGE + part(canvas, top + _EDGE)
    return canvas.crop((0, 0, WIDTH, top + _PAD)).quantize(_COLOURS, dither=Image.Dither.NONE)


def _draw_box(canvas: Image, box: Box, top: int, *, this: bool) -> int:
    from PIL import ImageDraw

    height = _HEAD + _LINE * len(box.rows) + (8 if box.rows else 0)
    place = (_LEFT, top, WIDTH - _LEFT, top + height)
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle(place, 12, _BOX)
    draw.rounded_rectangle((_LEFT, top, WIDTH - _LEFT, top + _HEAD), 12, _THIS_HEAD if this else "#3a3d46")
    draw.text((_LEFT + _EDGE, top + _HEAD / 2), box.title, _TITLE, _font(26), anchor="lm")
    for number, row in enumerate(box.rows):
        _draw_row(draw, row, top + _HEAD + 4 + number * _LINE)
    draw.rounded_rectangle(place, 12, outline=_THIS if this else "#4a4d57", width=4 if this else 2)
    return height


def _draw_row(draw: ImageDraw, row: str, top: int) -> None:
    name, colon, value = row.removeprefix("*").partition(": ")
    left, right, middle = _LEFT + _EDGE, WIDTH - _LEFT - _EDGE, top + _LINE / 2
    if row.startswith("*"):
        draw.rounded_rectangle((left - 6, top + 3, right + 6, top + _LINE - 3), 8, _MARK)
    draw.text((left, middle), name, _VALUE if row.startswith("*") else _LABEL, _font(23), anchor="lm")
    if colon:
        draw.text((right, middle), value, _VALUE, _font(23), anchor="rm")


def _draw_wire(canvas: Image, wire: Wire, top: int) -> int:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    middle = _LEFT + 34
    draw.line((middle, top + 2, middle, top + _WIRE - 10), wire.colour, 5)
    draw.polygon([(middle - 10, top + _WIRE - 14), (middle + 10, top + _WIRE - 14), (middle, top + _WIRE)], wire.colour)
    draw.text((middle + 24, top + _WIRE / 2), wire.name, wire.colour, _font(22), anchor="lm")
    return _WIRE


@cache
def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    # Pillow's own: the same on every machine
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def main() -> None:
    for node in SCHEMES:
        draw(node).save(DOCS / node / NAME, optimize=True)
