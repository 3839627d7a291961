"""Qwen2.5-VL as an encoder that sees pictures: what AI Toolkit recorded, transformers' own arithmetic, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_aitk.pipelines.errors import FileError, InputError
from comfyui_aitk.pipelines.models.qwen_image import control
from comfyui_aitk.pipelines.models.qwen_image.edit_recipes import EDIT_TEMPLATE_TOKENS, PLUS_TRAINER
from comfyui_aitk.pipelines.observer import SILENT
from comfyui_aitk.pipelines.parts.encoder import Text
from comfyui_aitk.pipelines.parts.language_model.qwen2_5_vl import (
    PICTURE,
    SeeingLanguageModel,
    SeeingSettings,
    rotary_positions,
)
from comfyui_aitk.pipelines.parts.language_model.qwen2_5_vl_files import QWEN2_5_VL_SEEING
from comfyui_aitk.pipelines.parts.language_model.qwen2_5_vl_pixels import (
    LIMITS,
    PATCH,
    Sight,
    check_seen,
    patches_of,
    target,
)
from comfyui_aitk.pipelines.parts.language_model.qwen_vl_patches import Limits, processed_size
from comfyui_aitk.pipelines.pictures.picture import Picture
from comfyui_aitk.pipelines.weights.folder import FolderSource
from comfyui_aitk.pipelines.weights.part_files import PartFiles
from PIL import Image
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent.parent / "golden"
MEGAPIXEL, SMALL = Sight(1024 * 1024), Sight(384 * 384)
FACTS = PartFiles(
    "encoder", QWEN2_5_VL_SEEING.files(), companions=("processor",), config=QWEN2_5_VL_SEEING.folder_config
)


def _picture(path: Path) -> Picture:
    return Picture.of(torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None].float() / 255)


def _source(model: str) -> FolderSource:
    return FolderSource.open(GOLDEN / model / "base", "base", "text_encoder", FACTS)


def _loaded(model: str, dtype: torch.dtype = torch.float32):
    part, source = SeeingLanguageModel(QWEN2_5_VL_SEEING, needs="This needs Qwen2.5-VL."), _source(model)
    part.check_kind(source)
    part.check_files(source)
    return part, part.load(source, dtype, "none", (), SILENT)


def _settings(sight: Sight = SMALL, *, grid: bool = False, cast_rope: bool = False) -> SeeingSettings:
    return SeeingSettings(cast_rope, dropped=0, sight=sight, grid_positions=grid)


@pytest.mark.parametrize("model", ["qwen_image_edit", "qwen_image_edit_plus"])
def test_the_tower_gets_the_recorded_patches(model):
    folder = GOLDEN / model
    case = next(
        own for own in json.loads((folder / "index.json").read_text())["cases"] if own["name"] == "control_1_96x64"
    )
    recorded = load_file(folder / case["tensors"])
    sight = SMALL if model.endswith("plus") else MEGAPIXEL
    found = patches_of([_picture(folder / case["control_images"][0])], sight, LIMITS, torch.float32, "cpu")
    assert torch.equal(found.grids, recorded["prompt_grid_thw"])
    assert len(found.values) == found.grids.prod() and found.tokens == [found.grids.prod() // 4]
    # nearly black: of 1/255 of a picture's range
    assert (found.values[::97, ::8] - recorded["prompt_pixel_values_thin"]).abs().max() < 2e-6


# of AI Toolkit's formula; the second is not reached again from itself
@pytest.mark.parametrize(
    ("width", "height", "once", "twice"), [(80, 72, (352, 416), (352, 416)), (155, 64, (256, 608), (256, 576))]
)
def test_a_picture_is_resized_once_more_where_it_was_resized_already(width, height, once, twice):
    assert target(height, width, SMALL) == once
    assert target(*once, SMALL) == twice
    assert target(height, width, Sight(SMALL.area, swapped=True)) == (once[1], once[0])


def test_sizes_of_the_processor():
    assert processed_size(1088, 960, LIMITS, PATCH) == (1092, 952)
    assert processed_size(32, 32, LIMITS, PATCH) == (56, 56)
    assert processed_size(4000, 4000, Limits(LIMITS.least, 1_003_520), PATCH) == (980, 980)
    with pytest.raises(InputError, match="Control image 2 is 4000 x 10, too long for the text encoder"):
        check_seen(4000, 10, 2, SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_those_of_transformers(dtype):
    """Against transformers' processor, which needs torchvision."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from transformers import Qwen2VLImageProcessor

    generator = torch.Generator().manual_seed(1)
    pictures = [Picture.of(torch.rand((1, *size, 3), generator=generator)) for size in ((72, 80), (190, 61), (64, 155))]
    processor = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056)
    found = patches_of(pictures, SMALL, LIMITS, dtype, "cpu")
    values = []
    for picture in pictures:
        pixels = picture.pixels.permute(2, 0, 1).float().div(255)[None].to(dtype)
        size = target(picture.height, picture.width, SMALL)
        values.append(torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")[0])
    theirs = processor(images=values, return_tensors="pt")
    assert torch.equal(found.grids, theirs["image_grid_thw"])
    assert torch.equal(found.values, theirs["pixel_values"])


def test_positions_in_a_grid_are_those_of_transformers():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    config = json.loads((GOLDEN / "qwen_image_edit" / "base" / "text_encoder" / "config.json").read_text())
    with torch.device("meta"):
        # annotated with kinds of tensors that nobody makes
        model: Any = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(config))
    grids = [[1, 4, 6], [1, 10, 4]]
    ids = [5, 6, *[12] * 6, 7, *[12] * 10, 8, 9]
    kinds = torch.tensor([[int(own == 12) for own in ids]])
    if "mm_token_type_ids" not in Qwen2_5_VLModel.get_rope_index.__annotations__:
        pytest.skip("transformers before 5 finds pictures by the tokens around them, which these ids do not have")
    theirs, _ = model.get_rope_index(torch.tensor([ids]), image_grid_thw=torch.tensor(grids), mm_token_type_ids=kinds)
    assert torch.equal(rotary_positions(ids, 12, grids), theirs)


def test_positions_in_a_grid_are_another_embedding_and_only_of_pictures():
    part, module = _loaded("qwen_image_edit_plus")
    picture = _picture(GOLDEN / "qwen_image_edit_plus" / "control" / "ctrl_a.png")
    for pictures, differs in (((picture,), True), ((), False)):
        text = PICTURE * len(pictures) + "make it blue"
        plain, grid = (
            part.encode(module, Text(text, 4096, _settings(grid=own), pictures=pictures), "cpu").embeds
            for own in (False, True)
        )
        assert torch.equal(plain, grid) != differs


# recorded by ai-toolkit-inference's own code, of the prompt and the pictures c, a and b, with the versions of
# transformers that the references pin; "cast" after AI Toolkit's cast of the whole text encoder
PINNED = [
    ("4.57.3", torch.float32, False, True), ("4.57.3", torch.bfloat16, False, True),
    ("4.57.3", torch.bfloat16, True, True), ("5.5.3", torch.bfloat16, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("version", "dtype", "cast", "grid"), PINNED, ids=str)
def test_embeddings_are_those_of_the_pinned_transformers(request, version, dtype, cast, grid):
    if dtype == torch.bfloat16:
        request.getfixturevalue("recorded_kernels")
    folder = GOLDEN / "qwen_image_edit_plus"
    name = f"{str(dtype).removeprefix('torch.')}{'_cast' if cast else ''}_every16"
    recorded = load_file(folder / "pinned" / f"transformers_{version}.safetensors")[name].float()
    pictures = tuple(_picture(folder / "control" / f"ctrl_{own}.png") for own in "cab")
    text = control.in_text("turn the background into a forest and keep the person unchanged", 3, PLUS_TRAINER)
    part, module = _loaded("qwen_image_edit_plus", dtype)

    def difference(**other: bool) -> torch.Tensor:
        settings = {"grid": grid, "cast_rope": cast} | other
        own = replace(_settings(Sight(384 * 384, swapped=True), **settings), dropped=EDIT_TEMPLATE_TOKENS)
        with torch.no_grad():
            found = part.encode(module, Text(text, 4096, own, pictures=pictures), "cpu").embeds[:, ::16].float()
        assert found.shape == recorded.shape
        return (found - recorded).abs()

    # measured 0; of values up to 3.1 positions cost 0.8, and rounded angles 0.03 on three of four values in bfloat16
    assert difference().max() < (1e-4 if dtype == torch.float32 else 0.02)
    assert difference(grid=not grid).max() > 0.3
    if dtype == torch.bfloat16:
        assert (difference() > 0).float().mean() < 0.01
        assert (difference(cast_rope=not cast) > 0).float().mean() > 0.5


def test_a_tower_is_asked_for_its_angles_in_three_ways():
    """As transformers 5.5, 5.12 and 5.20 ask; those of the rounded ones are written out in bfloat16."""
    _, module = _loaded("qwen_image_edit_plus", torch.bfloat16)
    tower: Any = module.model
    rope, places = tower.visual.rotary_pos_emb, torch.tensor([[0, 3], [37, 5], [70, 1]])
    exact = rope.inv_freq.clone()
    for cast in (False, True):
        module.set_rope(cast)
        dtype = torch.bfloat16 if cast else torch.float32
        table = torch.outer(torch.arange(71, dtype=dtype), exact.to(dtype))
        assert torch.equal(rope(71), table) and torch.equal(rope(torch.tensor(71)), table)
        angles = table[places].flatten(1)
        assert torch.equal(rope(places), angles)
        cosines, sines = rope(torch.zeros(3, 16), places)
        double = torch.cat([angles, angles], dim=-1)
        assert torch.equal(cosines, double.cos()) and torch.equal(sines, double.sin())


def test_rounded_frequencies_are_another_embedding_in_bfloat16():
    pictures = (_picture(GOLDEN / "qwen_image_edit_plus" / "control" / "ctrl_a.png"),)
    part, module = _loaded("qwen_image_edit_plus", torch.bfloat16)
    plain, cast = (
        part.encode(module, Text(PICTURE, 4096, _settings(cast_rope=own), pictures=pictures), "cpu").embeds
        for own in (False, True)
    )
    assert not torch.equal(plain, cast)


def test_a_prompt_cannot_name_a_picture_that_is_not_there():
    part, module = _loaded("qwen_image_edit_plus")
    with pytest.raises(InputError, match=r"A prompt cannot contain <\|image_pad\|>"):
        part.encode(module, Text("a <|image_pad|>", 4096, _settings()), "cpu")


def test_too_many_tokens_are_refused():
    part, module = _loaded("qwen_image_edit_plus")
    picture = _picture(GOLDEN / "qwen_image_edit_plus" / "control" / "ctrl_a.png")
    with pytest.raises(InputError, match="are 199 tokens, and the text encoder takes 100"):
        part.encode(module, Text(PICTURE + "a b", 100, _settings(), pictures=(picture,)), "cpu")


def test_a_folder_without_its_tower_or_with_other_limits(tmp_path):
    for name in ("text_encoder", "processor"):
        (tmp_path / name).mkdir()
        for file in (GOLDEN / "qwen_image_edit" / "base" / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    part = SeeingLanguageModel(QWEN2_5_VL_SEEING, needs="This needs Qwen2.5-VL.")
    limits = tmp_path / "processor" / "preprocessor_config.json"
    config = json.loads(limits.read_text()) | {"min_pixels": 0}
    limits.write_text(json.dumps(config))
    source = FolderSource.open(tmp_path, "mine", "text_encoder", FACTS)
    with pytest.raises(FileError, match="has min_pixels 0 and max_pixels 12845056"):
        part.load(source, torch.float32, "none", (), SILENT)
    limits.unlink()
    source = FolderSource.open(tmp_path, "mine", "text_encoder", FACTS)
    assert part.load(source, torch.float32, "none", (), SILENT).tokenizer.limits == LIMITS
    file = tmp_path / "text_encoder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"vision_config": config["vision_config"] | {"patch_size": 16}}))
    with pytest.raises(FileError, match="has another vision tower, whose patch_size is 16 and not 14"):
        part.check_kind(FolderSource.open(tmp_path, "mine", "text_encoder", FACTS))
    del config["vision_config"]
    file.write_text(json.dumps(config))
    with pytest.raises(FileError, match=r"has no vision tower: vision_config is missing.*This needs Qwen2.5-VL"):
        part.check_kind(FolderSource.open(tmp_path, "mine", "text_encoder", FACTS))


def test_areas():
    # a square is a square of the whole area, and shapes in use keep theirs
    assert target(1024, 1024, MEGAPIXEL) == (1024, 1024)
    assert target(768, 1024, SMALL) == (320, 448)
    assert math.isclose(384 * 384, np.prod(target(1080, 1920, SMALL)), rel_tol=0.05)
