"""What a model states about itself: data that needs no torch. Its code is found by its place, see ``models``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..options import OptionValue, Quantization
    from ..weights.part_files import ModelFiles
    from ..weights.pieces import Piece
    from .option import Option
    from .recipe import Recipe


@dataclass(frozen=True)
class Defaults:
    """What a new sampler node shows: the model page's values."""

    steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int


@dataclass(frozen=True)
class LatentSpace:
    """The LATENT that a model gives and takes.

    Attributes:
        format: ComfyUI's name of it, for previews.
        channels: of the latents.
        downscale: pixels per latent pixel and side.
        frames: whether it has an axis of time between channels and height; a picture has one frame.
    """

    format: str
    channels: int
    downscale: int
    frames: bool = False


@dataclass(frozen=True)
class Spelling:
    """One way in which LoRA files name the layers of a part.

    Attributes:
        prefix: stands before each name. What tools put in front of any model's, such as ``diffusion_model.`` and
            ``lora_unet_``, is taken off a file's names anyway and need not be listed.
        part: which part's layers.
        separator: between the steps of a name, ``.`` or ``_``: the two are not told apart.
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
        unused: what releases have and no forward reads, in the naming of the release; keys of it are skipped.
    """

    spellings: tuple[Spelling, ...]
    signature: Sequence[str]
    excluded: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """What the nodes say of a model.

    Attributes:
        search: under which words the node search finds the pack's nodes.
        inputs: ``Node.input`` -> a sentence that its tooltip adds for this model.
    """

    search: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedParts:
    """Parts that a key of a training job's model section names.

    Attributes:
        parts: which.
        alone: whether they lie in the root of the repository or folder; else in diffusers' subfolders.
        base_first: whether they are taken from the base where that is a folder that has them.
    """

    parts: tuple[str, ...]
    alone: bool = False
    base_first: bool = False


@dataclass(frozen=True)
class JobFiles:
    """What AI Toolkit's class of a model reads of a training job's model section beside the base.

    Attributes:
        parts: key -> the parts that it names.
        file_extras: the repository of the other parts where the base is a single file; empty where there is none.
        stops: keys at which AI Toolkit stops before the first picture.
        missing: keys that AI Toolkit reads and this pack does not.
        comfy_weights: ComfyUI's files that AI Toolkit takes for the model's own repository since 0.13, where one of
            them lies in its models folder.
        kwargs: keys of its ``model_kwargs`` -> AI Toolkit's value where a job says nothing. An option of the recipes
            that is called like a key is set by it; any other value of the rest is one that this pack does not have.
        signs: keys of its ``model_kwargs`` -> whether they are on, where a job is this entry's and not that of another
            one of the same arch.
    """

    parts: Mapping[str, NamedParts] = field(default_factory=dict)
    file_extras: str = ""
    stops: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    comfy_weights: tuple[str, ...] = ()
    kwargs: Mapping[str, OptionValue | None] = field(default_factory=dict)
    signs: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """A catalogue entry.

    Attributes:
        id: AI Toolkit's ``arch``, with its tag where that has weights or defaults of its own; part of every shared
            workflow.
        title: for people.
        files: its parts and where they come from.
        signs: values in its main part's configuration by which its weights are told from those of other models of the
            same class; models that nothing tells apart have the same.
        defaults: the sampler's.
        recipes: by name; the first is the default.
        guidance: ``classifier-free`` calls the model for the negative prompt too; ``embedded`` is an input of it, and
            there is no use for a negative prompt.
        latent: its LATENT.
        lora: names in LoRA files.
        main_blocks: how many blocks of the released denoiser can be kept off the device.
        quantization: what ``model default`` means, by part; a part that is not in it is not quantised.
        low_memory_quantization: what it means instead where the computer's memory cannot hold the part so; a part that
            is not in it is never quantised for that.
        recipe_options: options that some of its recipes read.
        runtime_options: options of how its parts run.
        words: what the nodes say of it.
        takes_system_prompt: whether its template has a place for one.
        lora_base: what AI Toolkit writes into a LoRA's metadata as the model that it was trained on
            (``ss_base_model_version``); empty is the id, without what stands behind its colon.
        training_adapter: the file, ``owner/name/file`` on the hub, that AI Toolkit's interface trains it with; empty
            where it needs none.
        recovery_adapters: the files, likewise, that it offers to train the quantised model on; empty where it takes any
            and offers none, None where it takes none.
        encoder_qtype: which key of a training job's config is the type of its quantised text encoders.
        preview_sampler: the value of a training job's ``sample.sampler`` with which AI Toolkit renders as its recipes
            do; empty where it reads none.
        job_files: which keys of a training job's config name other files.
    """

    id: str
    title: str
    files: ModelFiles
    defaults: Defaults
    recipes: Mapping[str, Recipe]
    guidance: Literal["classifier-free", "embedded"]
    latent: LatentSpace
    lora: LoraNames
    main_blocks: int
    quantization: Mapping[str, Quantization] = field(default_factory=dict)
    low_memory_quantization: Mapping[str, Quantization] = field(default_factory=dict)
    recipe_options: tuple[Option, ...] = ()
    runtime_options: tuple[Option, ...] = ()
    signs: Mapping[str, object] = field(default_factory=dict)
    words: Words = field(default_factory=Words)
    takes_system_prompt: bool = True
    lora_base: str = ""
    training_adapter: str = ""
    recovery_adapters: tuple[str, ...] | None = None
    encoder_qtype: Literal["qtype", "qtype_te", "qtype_te since 0.13"] = "qtype_te"
    preview_sampler: str = ""
    job_files: JobFiles = field(default_factory=JobFiles)
