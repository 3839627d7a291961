"""The facts of Qwen-Image-Edit, -2509 and -2511: Qwen-Image's network, which also gets the tokens of control images.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...parts.language_model.qwen2_5_vl_files import QWEN2_5_VL_SEEING
from ...weights.part_files import ModelFiles, PartFiles, Repository
from ..facts import JobFiles, NamedParts, Words
from .edit_recipes import EDIT_RECIPES, OPTIONS, PLUS_RECIPES, RECIPES_2511
from .facts import ADAPTERS, QWEN_IMAGE, files_of
from .files import TRANSFORMER

if TYPE_CHECKING:
    from ...weights.layout import Infos

_PROCESSOR = ("processor/*.json", "processor/*.txt", "processor/*.jinja")


def _edit_files(title: str, repository: str) -> ModelFiles:
    encoder = PartFiles(
        "encoder",
        QWEN2_5_VL_SEEING.files(),
        # its tokenizer, and the limits of pictures
        companions=("processor",),
        config=QWEN2_5_VL_SEEING.folder_config,
        # no single file of Qwen2.5-VL has one inside
        tokenizer=Repository(repository, _PROCESSOR, "processor"),
        comfy_file="qwen_2.5_vl_7b.safetensors",
    )
    return files_of(title, repository, encoder)


QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    id="qwen_image_edit",
    title="Qwen-Image-Edit",
    files=_edit_files("Qwen-Image-Edit", "Qwen/Qwen-Image-Edit"),
    recipes={recipe.name: recipe for recipe in EDIT_RECIPES},
    # AI Toolkit qwen_image.py load_model: for a single file the rest comes from a repository without a processor, at
    # which it stops, unless extras_name_or_path names another
    job_files=JobFiles(
        {"extras_name_or_path": NamedParts(("text_encoder", "vae"), base_first=True)},
        file_extras="Qwen/Qwen-Image-Edit",
        stops=QWEN_IMAGE.job_files.stops,
        missing=QWEN_IMAGE.job_files.missing,
    ),
    # AI Toolkit qwen_image.py get_base_model_version, which its edit classes inherit
    lora_base="qwen_image",
    recovery_adapters=(ADAPTERS.format("qwen_image_edit", 3),),
    words=Words(search=("qwen image edit", "qwen-image-edit", "2509", "2511")),
)

QWEN_IMAGE_EDIT_PLUS = replace(
    QWEN_IMAGE_EDIT,
    id="qwen_image_edit_plus",
    title="Qwen-Image-Edit-2509",
    files=_edit_files("Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2509"),
    recipes={recipe.name: recipe for recipe in PLUS_RECIPES},
    job_files=replace(QWEN_IMAGE_EDIT.job_files, file_extras="Qwen/Qwen-Image-Edit-2509"),
    recipe_options=OPTIONS,
    recovery_adapters=(ADAPTERS.format("qwen_image_edit_2509", 3),),
    words=Words(),
)


def _config_2511(infos: Infos) -> dict[str, Any]:
    """The configuration of a single file that the user says is this model: not all of them have ComfyUI's marker."""
    return {**TRANSFORMER.config(infos), "zero_cond_t": True}


def _files_2511(title: str, repository: str) -> ModelFiles:
    files = _edit_files(title, repository)
    transformer = replace(files.parts["transformer"], files=replace(TRANSFORMER, config=_config_2511))
    return replace(files, parts={**files.parts, "transformer": transformer})


QWEN_IMAGE_EDIT_2511 = replace(
    QWEN_IMAGE_EDIT_PLUS,
    id="qwen_image_edit_plus:2511",
    title="Qwen-Image-Edit-2511",
    files=_files_2511("Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2511"),
    recipes={recipe.name: recipe for recipe in RECIPES_2511},
    job_files=replace(QWEN_IMAGE_EDIT.job_files, file_extras="Qwen/Qwen-Image-Edit-2511"),
    recovery_adapters=(ADAPTERS.format("qwen_image_edit_2511", 3),),
    signs={"zero_cond_t": True},
)
