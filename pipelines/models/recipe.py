"""A recipe: one documented way to sample a model, as data. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import InputError

if TYPE_CHECKING:
    from ..options import Arithmetic, Chosen, MergeArithmetic
    from ..pictures.sizes import SizeRule
    from .option import Option

# the two that every model has
REFERENCE_PIPELINE, TRAINER_PREVIEW = "reference pipeline", "trainer preview"
SUMMARIES = {
    REFERENCE_PIPELINE: "as the model's page documents (diffusers).",
    TRAINER_PREVIEW: "what AI Toolkit itself renders while it trains.",
}

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Era:
    """The time in which AI Toolkit rendered so.

    Attributes:
        first, last: days, ``YYYY-MM-DD``, of its checkout; None is open.
        version: of AI Toolkit at the first day, as it stands in a LoRA's metadata (``software``).
    """

    first: str | None
    last: str | None
    version: str


@dataclass(frozen=True)
class Recipe:
    """One documented way to sample a model. Models add their own fields.

    Attributes:
        name: as the user chooses it.
        size: how sizes snap.
        lora_arithmetic: of live LoRAs: ``trainer`` adds a float32 branch, ``peft`` one in the base's dtype,
            ``sd-scripts`` one in the dtype that the layer gets.
        lora_application: what ``application: auto`` means on unquantised weights, DoRA apart.
        merge_arithmetic: of merged LoRAs: ``float32`` and one rounding to the run's dtype; ``stored``, the same with
            one to the dtype of the weights' file first; or with a reference's own roundings, for the kinds that it
            takes, see :mod:`..lora.kinds.merges`: ``peft``, ``addmm``, ``file``.
        prompt_flags: whether the prompt is read as AI Toolkit reads a sample's: stripped, and cut at the first ``--``,
            where its flags begin.
        noise: where it is drawn: one seed gives another noise on another kind of device.
        system_prompt: the instruction in front of the prompt where the user gives none; may be empty.
        control_images: how many reference images it takes at most.
        posterior: how the latents of reference images are drawn: their ``mean``; by the ``trainer``'s generator, the
            compute device's, which on a CPU draws the noise after them; or by one of their ``own``.
        options: the model's options that this recipe reads -> its field.
        sources: field -> where its value was read.
        summary: for the tooltip, where the name is not one that every model has.
        plain: part -> names of layers that no quantisation touches, see :class:`..layers.holding.Selected`.
        era: when the trainer rendered so, where it did otherwise at other times.
    """

    name: str
    size: SizeRule
    lora_arithmetic: Arithmetic
    lora_application: Literal["merged", "live"]
    merge_arithmetic: MergeArithmetic
    prompt_flags: bool
    noise: Literal["cpu", "compute device"]
    system_prompt: str
    control_images: int
    posterior: Literal["mean", "trainer", "own"]
    options: Mapping[str, str]
    sources: Mapping[str, str]
    summary: str = field(default="", kw_only=True)
    plain: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    era: Era | None = field(default=None, kw_only=True)

    @property
    def guided_above(self) -> float:
        """The guidance_scale up to which the model is called for the prompt alone, and uses no negative prompt."""
        return 1.0

    def configured(self: R, chosen: Chosen, declared: Sequence[Option]) -> R:
        """This recipe with the user's options in place of its own values.

        Args:
            chosen: what the user changed on AITK Recipe Options.
            declared: the model's options.

        Raises:
            InputError: an option was changed that this recipe does not read, or is out of its range.
        """
        ignored = [name for name in chosen if name not in self.options]
        if ignored:
            reads = f"reads only {', '.join(self.options)}" if self.options else "reads none of these options"
            raise InputError(
                f"{', '.join(ignored)} of AITK Recipe Options would do nothing: the recipe {self.name!r} {reads}. "
                "Put the default back, or choose another recipe."
            )
        changes: dict[str, Any] = {}
        for option in declared:
            if option.name in self.options:
                value = chosen.get(option.name, option.default)
                option.check(value)
                changes[self.options[option.name]] = value
        return replace(self, **changes)
