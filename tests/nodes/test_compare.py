"""AITK Compare Previews: verdicts shown, pictures handed on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.nodes.compare import AITKComparePreviews
from comfyui_aitk.pipelines.errors import InputError
from PIL import Image

JOBS = Path(__file__).resolve().parents[1] / "golden" / "jobs"
PLAIN = torch.full((1, 8, 8, 3), 0.5)


def batch(*files: Path) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float() / 255 for file in files])


def previews(job: str, step: int) -> list[Path]:
    files = [next((JOBS / job / "samples").glob(f"*__{step:09}_{index}.*")) for index in (0, 1)]
    return files


def replayed(job: str, step: int) -> list[Path]:
    return [JOBS / "replayed" / job / f"{step:09}_{index}.png" for index in (0, 1)]


def test_verdicts_are_shown_and_pictures_handed_on(host, capfd):
    trainer, ours = batch(*previews("omnigen2_control", 250)), batch(*replayed("omnigen2_control", 250))
    heat, sheet, report = AITKComparePreviews().compare(ours, trainer, format="jpg", unique_id="7")["result"]
    assert heat.shape == ours.shape
    assert sheet.shape[0] == 1
    assert sheet.shape[1] > 2 * 64
    found = json.loads(report)
    assert [one["verdict"] for one in found["pictures"]] == ["same picture, different by some levels"] * 2
    assert [one["difference"]["maximum"] for one in found["pictures"]] == [23, 18]
    assert (heat[0].sum(dim=2) > 0).sum() > 100
    assert "node 7: 2 pictures: 2 same picture" in capfd.readouterr().err
    # as they are, JPEG's own loss is in it
    _, _, raw = AITKComparePreviews().compare(ours, trainer)["result"]
    assert json.loads(raw)["pictures"][0]["difference"]["maximum"] > 100


def test_a_floor_allows_kernel_noise_and_alpha_is_noted(host, capfd):
    ours = batch(*replayed("lumina2_bf16", 250))
    trainer = batch(*previews("lumina2_bf16", 250))
    noise = torch.randint(-4, 5, ours.shape, generator=torch.Generator().manual_seed(0)) / 255
    _, _, report = AITKComparePreviews().compare(ours, trainer, (ours + noise).clamp(0, 1))["result"]
    assert [one["verdict"] for one in json.loads(report)["pictures"]] == ["equal up to kernel noise"] * 2
    transparent = torch.cat([ours, torch.zeros_like(ours[..., :1])], dim=3)
    _, _, report = AITKComparePreviews().compare(transparent, ours)["result"]
    assert json.loads(report)["notes"] == ["the transparency of ours is not compared"]
    assert "2 pictures: 2 identical." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"trainer": PLAIN.repeat(2, 1, 1, 1)}, "trainer holds 2 pictures and ours 1"),
        ({"trainer": PLAIN[:, :4]}, "The pictures of trainer are 8 x 4 pixels and those of ours 8 x 8"),
        ({"floor": PLAIN.repeat(2, 1, 1, 1)}, "floor holds 2 pictures and ours 1"),
        ({"trainer": PLAIN * float("nan")}, "Picture 1 of trainer holds NaN or Inf"),
        ({"trainer": PLAIN[0]}, r"trainer has shape \[8, 8, 3\]"),
        ({"trainer": PLAIN[:0]}, "there is no picture in it"),
        ({"trainer": "a.png"}, "trainer is 'a.png', no IMAGE"),
        ({"format": "bmp"}, "format 'bmp' is unknown. Choose one of: png, jpg, webp"),
    ],
)
def test_what_cannot_be_compared_is_refused(host, inputs, message):
    with pytest.raises(InputError, match=message):
        AITKComparePreviews().compare(**{"ours": PLAIN, "trainer": PLAIN} | inputs)
