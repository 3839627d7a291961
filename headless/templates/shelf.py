"""All templates. Their names begin with what a newcomer looks for: where the browser sorts, it sorts by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...pipelines.models import catalogue
from . import pictures, settings, trainer
from .model_files import COMFY_FILES, SUBJECTS

if TYPE_CHECKING:
    from .drawing import Drawing

_TO_IMAGE = (
    "flux2", "flux2_klein_4b", "krea2", "krea2:turbo", "lumina2", "omnigen2", "qwen_image", "zimage", "zimage:turbo",
)  # fmt: skip
# of each but the first, several pictures
_EDIT = ("qwen_image_edit", "qwen_image_edit_plus", "qwen_image_edit_plus:2511", "krea2:o_edit")
_OF_EACH: tuple[tuple[Callable[[str], Drawing], tuple[str, ...]], ...] = (
    (trainer.samples, (*_TO_IMAGE, *_EDIT)),
    (pictures.text_to_image, tuple(model for model in catalogue() if not SUBJECTS[model].edits)),
    (pictures.lora, _TO_IMAGE),
    (pictures.control_image, ("flux2", "flux2_klein_4b", "omnigen2", *_EDIT, "krea2:o_edit_turbo")),
    (pictures.control_images, ("flux2", "omnigen2", *_EDIT[1:])),
    (settings.comfy_files, tuple(COMFY_FILES)),
    (settings.gguf, ("lumina2", "qwen_image", "zimage:turbo")),
)
_ONE: tuple[Callable[[], Drawing], ...] = (
    trainer.replay_job, trainer.compare_with_sample, trainer.compare_recipes, trainer.lora_kohya,
    trainer.recovery_adapter, trainer.server_request, pictures.lora_stack, pictures.image_to_image, settings.small_gpu,
    settings.recipe_options, settings.all_in_one, settings.pickle,
)  # fmt: skip


def templates() -> list[Drawing]:
    """Every template, in the order of their names."""
    found = [make() for make in _ONE]
    found += [make(model) for make, models in _OF_EACH for model in models]
    return sorted(found, key=lambda drawing: drawing.name.casefold())
