"""Draws README's ``side_by_side.png``: a recorded preview of AI Toolkit, ours, and diffusers', with what differs.

    .venv/bin/python docs/pictures/side_by_side.py

The pictures come from this pack's own commands: ``replay`` renders the preview again, ``run`` renders the same prompt,
LoRA, seed and size by the recipe ``reference pipeline``, whose pixels are those of diffusers' ``Lumina2Pipeline``
(tests/pipelines/test_reference.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
JOB, STEP, SAMPLE = "lumina2_png", 500, 1

SCALE = 5  # of a pixel
GAP = 24
TITLE, LINE = 54, 34
PAPER, INK, SOFT, BLACK = "#ffffff", "#1c1f24", "#5d6673", "#0b0d10"


@dataclass(frozen=True)
class Panel:
    """A picture, what drew it, and how it differs from the trainer's."""

    title: str
    words: str
    picture: Image.Image


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        panels = _render(Path(folder))
    sheet = draw(panels)
    sheet.save(Path(__file__).with_name("side_by_side.png"), optimize=True)


def _render(folder: Path) -> list[Panel]:
    models = folder / "models"
    for name, target in {"diffusers/tiny": GOLDEN / "lumina2" / "base", "loras": GOLDEN / "jobs" / JOB}.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).symlink_to(target)
    notes = json.loads((GOLDEN / "jobs" / f"{JOB}.json").read_text("utf-8"))
    (checkpoint,) = [one for one in notes["rounds"] if one["step"] == STEP]
    item = checkpoint["items"][SAMPLE]
    _command(
        "replay", GOLDEN / "jobs" / JOB, "--models", models, "--output", folder / "replay", "--weights", "tiny",
        "--checkpoints", STEP, "--samples", SAMPLE,
    )  # fmt: skip
    sets = {
        "LoadAITKModel.weights": "tiny", "LoadAITKModel.dtype": "float32",
        "ApplyAITKLoRA.lora_name": checkpoint["lora"], "ApplyAITKLoRA.strength": 1,
        "AITKSampler.recipe": "reference pipeline", "AITKSampler.trigger_word": "",
        "AITKSampler.prompt": item["prompt"], "AITKSampler.negative_prompt": item["negative_prompt"],
        "AITKSampler.width": item["width"], "AITKSampler.height": item["height"],
        "AITKSampler.steps": item["steps"], "AITKSampler.guidance_scale": item["guidance"],
        "AITKSampler.seed": item["seed"],
    }  # fmt: skip
    example = ROOT / "example_workflows" / "LoRA - Lumina Image 2.0.json"
    _command(
        "run", example, "--models", models, "--output", folder / "reference",
        *(word for name, value in sets.items() for word in ("--set", f"{name}={value}")),
    )  # fmt: skip
    (ours,) = (folder / "replay" / "ours").glob("*.png")
    (reference,) = (folder / "reference").rglob("*.png")
    trainer = GOLDEN / "jobs" / JOB / "samples" / item["file"]
    return [
        Panel("AI Toolkit", "the preview it saved while it trained", _opened(trainer)),
        Panel("this pack", "recipe “trainer preview”", _opened(ours)),
        Panel("diffusers", "as the model's page calls it", _opened(reference)),
    ]


def _command(*words: object) -> None:
    subprocess.run([sys.executable, ROOT / "tasks.py", *map(str, words)], check=True)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def draw(panels: list[Panel]) -> Image.Image:
    """The panels side by side, each above the map of its difference from the first one."""
    width, height = (SCALE * side for side in panels[0].picture.size)
    sheet = Image.new("RGB", (len(panels) * (width + GAP) + GAP, GAP + TITLE + LINE + 2 * (height + GAP) + LINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, panel in enumerate(panels):
        left, top = GAP + place * (width + GAP), GAP
        pen.text((left, top), panel.title, INK, ImageFont.load_default(38))
        pen.text((left, top + TITLE - 6), panel.words, SOFT, ImageFont.load_default(22))
        top += TITLE + LINE
        sheet.paste(panel.picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        top += height + GAP
        heat = _heat(panels[0].picture, panel.picture)
        sheet.paste(heat.resize((width, height), Image.Resampling.NEAREST), (left, top))
        if place == 0:
            font = ImageFont.load_default(26)
            pen.text((left + 24, top + 24), "What differs from it:", "#ffffff", font)
            pen.text((left + 24, top + 62), "black where the pixels\nare the same", "#aab2bd", font)
        words = _count(panels[0].picture, panel.picture) if place else f"job {JOB}, step {STEP}, enlarged {SCALE} times"
        pen.text((left, top + height + 8), words, INK if place else SOFT, ImageFont.load_default(24 if place else 22))
    return sheet


def _difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """The largest difference of each pixel's three values."""
    red, green, blue = ImageChops.difference(one, other).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def _heat(one: Image.Image, other: Image.Image) -> Image.Image:
    """Black where nothing differs, through red and orange to white at 128 levels and more."""
    levels = _difference(one, other)
    red = levels.point(lambda level: min(255, 11 + level * 5))
    green = levels.point(lambda level: min(255, 13 + max(0, level - 24) * 3))
    blue = levels.point(lambda level: min(255, 16 + max(0, level - 80) * 5))
    return Image.merge("RGB", (red, green, blue))


def _count(one: Image.Image, other: Image.Image) -> str:
    levels = _difference(one, other).histogram()
    total = sum(levels)
    return f"{total - levels[0]:,} of {total:,} pixels differ"


if __name__ == "__main__":
    main()
