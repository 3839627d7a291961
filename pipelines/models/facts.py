"""What a model states about itself: data that needs no torch, and where the code that runs it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..pieces import Piece
from ..sizes import SizeRule
from ..sources.layout import SingleFiles

if TYPE_CHECKING:
    from ..handle import Quantization
    from ..lora.kinds.kind import Arithmetic
    from .runtime import ModelRuntime


@dataclass(frozen=True)
class Defaults:
    """What a new sampler node shows: the model page's values."""

    steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int


@dataclass(frozen=True)
class RecipeOptions:
    """What only some recipes read. Given, every option that a recipe reads has the value that stands here.

    Attributes:
        cfg_trunc_ratio: guidance runs while the model's time (0 noise, 1 image) is below this; above 1 in every step.
        renorm_cfg: the guided prediction's norm is limited to this many times the prompt's; 0 leaves it.
        discrete_flow_shift: of the schedule.
        system_prompt_on_negative: whether the negative prompt gets the system prompt too.
        image_guidance_scale: how far reference images are followed; 1 takes no model call of its own.
    """

    cfg_trunc_ratio: float = 0.25
    renorm_cfg: float = 1.0
    discrete_flow_shift: float = 6.0
    system_prompt_on_negative: bool = False
    image_guidance_scale: float = 1.0


R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Recipe:
    """One documented way to sample a model. Models add their own fields.

    Attributes:
        name: as the user chooses it.
        size: how sizes snap.
        lora_arithmetic: of live LoRAs: ``trainer`` adds a float32 branch, ``peft`` one in the base's dtype,
            ``sd-scripts`` one in the dtype that the layer gets.
        lora_application: what ``application: auto`` means on unquantised weights, DoRA apart.
        merge_dtype: what merged weights are rounded to: ``run``, the run's dtype, or first ``stored``, the file's.
        prompt_flags: whether the prompt is read as AI Toolkit reads a sample's: stripped, and cut at the first ``--``,
            where its flags begin.
        noise: where it is drawn: one seed gives another noise on another kind of device.
        system_prompt: the instruction in front of the prompt where the user gives none; may be empty.
        control_images: how many reference images it takes at most.
        posterior: how the latents of reference images are drawn: their ``mean``; by the ``trainer``'s generator, the
            compute device's, which on a CPU draws the noise after them; or by one of their ``own``.
        options: those that this recipe reads -> its field.
        sources: field -> where its value was read.
    """

    name: str
    size: SizeRule
    lora_arithmetic: Arithmetic
    lora_application: Literal["merged", "live"]
    merge_dtype: Literal["run", "stored"]
    prompt_flags: bool
    noise: Literal["cpu", "compute device"]
    system_prompt: str
    control_images: int
    posterior: Literal["mean", "trainer", "own"]
    options: Mapping[str, str]
    sources: Mapping[str, str]

    def configured(self: R, options: RecipeOptions) -> R:
        """This recipe with the user's options in place of its own values.

        Raises:
            InputError: an option was changed that this recipe does not read, or is out of its range.
        """
        for name, low, high in (
            ("cfg_trunc_ratio", 0, 100),
            ("renorm_cfg", 0, 100),
            ("discrete_flow_shift", 0.01, 100),
            ("image_guidance_scale", 1, 100),
        ):
            if not low <= getattr(options, name) <= high:
                raise InputError(f"{name} is {getattr(options, name)}: choose {low} to {high}.")
        plain = RecipeOptions()
        changed = [name for name, value in vars(options).items() if value != getattr(plain, name)]
        ignored = [name for name in changed if name not in self.options]
        if ignored:
            reads = f"reads only {', '.join(self.options)}" if self.options else "reads none of these options"
            raise InputError(
                f"{', '.join(ignored)} of AITK Recipe Options would do nothing: the recipe {self.name!r} {reads}. "
                "Put the default back, or choose another recipe."
            )
        return replace(self, **{field: getattr(options, name) for name, field in self.options.items()})


@dataclass(frozen=True)
class Repository:
    """A Hugging Face repository, or a folder of one, that holds a part or a tokenizer alone.

    Attributes:
        id: ``owner/name``.
        patterns: of the files that are needed.
        folder: where in it they are; empty is its root.
    """

    id: str
    patterns: tuple[str, ...]
    folder: str = ""


def _as_it_is(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config)


@dataclass(frozen=True)
class PartFacts:
    """Where a part of a model can come from.

    Attributes:
        files: what files of it look like.
        folder: its subfolder of the diffusers layout; empty where that is called like the part.
        companions: subfolders that it needs beside its own; the first of a text encoder is its tokenizer's.
        config: a folder's ``config.json`` -> the configuration in the keys of the part's class.
        file: the file that AI Toolkit reads instead, in the root of a folder or repository; empty where there is none.
        repository: where AI Toolkit takes the part from, whatever the weights hold besides.
        tokenizer: where the tokenizer of a single file comes from that has none inside.
    """

    files: SingleFiles
    folder: str = ""
    companions: tuple[str, ...] = ()
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = _as_it_is
    file: str = ""
    repository: Repository | None = None
    tokenizer: Repository | None = None


@dataclass(frozen=True)
class Spelling:
    """One way in which LoRA files name the layers of a part.

    Attributes:
        prefix: stands before each name.
        part: ``transformer`` or ``text_encoder``.
        separator: between the steps of a name, ``.`` or ``_``.
        names: the part's modules -> another naming's module -> the pieces of the part's modules whose rows it holds, in
            order; None is the model's own naming.
    """

    prefix: str
    part: str = "transformer"
    separator: Literal[".", "_"] = "."
    names: Callable[[Iterable[str]], Mapping[str, tuple[Piece, ...]]] | None = None


@dataclass(frozen=True)
class LoraNames:
    """How LoRA files name this model's layers.

    Attributes:
        spellings: every way; the trainer's own first.
        signature: parts of keys that only this model's files have, all of which must occur; names a stray file.
        excluded: ends of modules that no LoRA changes, e.g. embedding tables.
    """

    spellings: tuple[Spelling, ...]
    signature: Sequence[str]
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """A catalogue entry.

    Attributes:
        id: AI Toolkit's ``arch``; part of every shared workflow.
        title: for people.
        repo_id: the model's own Hugging Face repository.
        parts: ``transformer``, ``text_encoder`` and ``vae``.
        transformer_class: ``_class_name`` of ``transformer/config.json``; tells one model's folder from another's.
        defaults: the sampler's.
        recipes: by name; the first is the default.
        guidance: ``classifier-free`` calls the model for the negative prompt too; ``embedded`` is an input of it, and
            there is no use for a negative prompt.
        latent_channels: of the LATENT.
        latent_downscale: pixels per latent pixel and side.
        latent_format: ComfyUI's name of the latent space, for previews.
        quantization: what ``model default`` means, by part.
        low_memory_quantization: what it means instead where the computer's memory cannot hold the part so; a part that
            is not in it is never quantised for that.
        lora: names in LoRA files.
        load_runtime: imports the code that runs the model.
        largest_side: pixels; what a checkpoint's position table holds.
    """

    id: str
    title: str
    repo_id: str
    parts: Mapping[str, PartFacts]
    transformer_class: str
    defaults: Defaults
    recipes: Mapping[str, Recipe]
    guidance: Literal["classifier-free", "embedded"]
    latent_channels: int
    latent_downscale: int
    latent_format: str
    quantization: Mapping[str, Quantization]
    lora: LoraNames
    load_runtime: Callable[[], ModelRuntime]
    largest_side: Callable[[Checkpoint], int]
    low_memory_quantization: Mapping[str, Quantization] = field(default_factory=dict)
