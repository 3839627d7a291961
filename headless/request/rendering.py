"""What a request asks for, in this pack's terms. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...pipelines.weights.choice import Choice

if TYPE_CHECKING:
    from ...pipelines.options import Application, Attention, DType, OptionValue

SEEDS = 2**64  # how many torch.Generator knows


@dataclass(frozen=True)
class LoraUse:
    """A LoRA of a request.

    Attributes:
        name: as the request has it; as the workflow has it once it was found.
        strength: the multiplier.
        application: as AITK's own node has it.
    """

    name: str
    strength: float = 1.0
    application: Application = "auto"


@dataclass(frozen=True)
class PictureRequest:
    """One picture.

    Attributes:
        prompt: with the trigger word in it.
        negative_prompt: may be empty.
        width, height: pixels; the recipe snaps them.
        steps: of the schedule.
        guidance_scale: as the model understands it.
        seed: 0 to 2**64 - 1; one that the other program would draw is drawn already.
        system_prompt: empty is the recipe's own.
        control_images: field -> its value in the request, or the picture's name in the input folder once it was found.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    system_prompt: str = ""
    control_images: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendering:
    """A whole request.

    Attributes:
        model: id in the catalogue.
        recipe: of that model.
        loras: in the order in which they apply.
        pictures: one for each prompt, in order.
        weights: what the loader's node is to take.
        dtype: ``auto`` is the loader's own choice.
        recipe_options: inputs of AITK Recipe Options that the request sets.
        attention: of the transformer.
        device: that the request names; None where it names none.
        notes: what of the request has no meaning here, or was drawn; a sentence each.
    """

    model: str
    recipe: str
    loras: tuple[LoraUse, ...]
    pictures: tuple[PictureRequest, ...]
    weights: Choice = field(default_factory=Choice)
    dtype: Literal["auto"] | DType = "auto"
    recipe_options: Mapping[str, OptionValue] = field(default_factory=dict)
    attention: Attention = "default"
    device: str | None = None
    notes: tuple[str, ...] = ()
