"""What a run asks of a model's code: texts, schedule, loop, decoding. The networks are its parts' business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..layers.step_cache import StepCache
from ..parts.part import Autoencoder, Part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..options import Attention, DType, Quantization, RuntimeOptions
    from ..parts.encoder import Embedding, Text
    from ..pictures.picture import Picture
    from ..pictures.sizes import Size
    from ..weights.checkpoint import Checkpoint
    from .facts import ModelFacts
    from .recipe import Recipe
    from .schedule import Schedule


@dataclass(frozen=True)
class Typed:
    """The texts as the user wrote them; an empty ``system_prompt`` is the recipe's own."""

    prompt: str
    negative_prompt: str = ""
    system_prompt: str = ""


@dataclass(frozen=True, eq=False)
class Job:
    """What a run asks for, decided before anything is loaded.

    Attributes:
        recipe: with the user's options in it.
        checkpoint: the weights.
        dtype: what they are computed in.
        options: how they are held and run.
        quantization: part -> how it is held, as decided for this machine.
        size: of the pictures.
        guidance_scale: as the user gave it.
        typed: the texts.
        references: the control images, in order.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    dtype: DType
    options: RuntimeOptions
    quantization: Mapping[str, Quantization]
    size: Size
    guidance_scale: float
    typed: Typed
    references: tuple[Picture, ...] = ()


@dataclass(frozen=True, eq=False)
class Denoising:
    """One picture's way from noise to latents; tensors are on the compute device.

    Attributes:
        job: the run's.
        latents: the start, of the model's latent shape.
        schedule: the levels that run.
        conditioning: the embeddings of the model's texts, in order.
        on_step: called after each step with the number of steps done and the estimated clean latents.
        check: raises to interrupt; :meth:`calling` asks it.
        references: what the model made of the control images; empty without any.
        generator: drew the noise, and draws on for a sampler that adds some in its steps; None in tests of a loop.
        step_cache: what a step may reuse of earlier ones.
    """

    job: Job
    latents: torch.Tensor
    schedule: Schedule
    conditioning: Sequence[Embedding]
    on_step: Callable[[int, torch.Tensor], None]
    check: Callable[[], None]
    references: tuple[torch.Tensor, ...] = field(default=())
    generator: torch.Generator | None = None
    step_cache: StepCache = field(default_factory=lambda: StepCache(0))

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def guidance_scale(self) -> float:
        return self.job.guidance_scale

    @property
    def attention(self) -> Attention:
        """The kernel of the denoisers' attention."""
        return self.job.options.transformer_attention

    @contextmanager
    def calling(self, branch: str) -> Iterator[None]:
        """To be around each call of a denoiser; raises to interrupt before it.

        Args:
            branch: which of a step's calls it is, e.g. ``prompt``.
        """
        self.check()
        with self.step_cache.branch(branch):
            yield


Denoisers = Callable[[str], "nn.Module"]  # a part's name -> the part on the compute device, until the next call


class Model(ABC):
    """One model's code. It holds no weights and no state: parts come in, pictures go out.

    Args:
        facts: the catalogue's entry.
        parts: the networks that it is made of.
    """

    def __init__(self, facts: ModelFacts, parts: Sequence[Part]) -> None:
        self.facts = facts
        self.parts = {part.name: part for part in parts}

    @property
    def autoencoder(self) -> Autoencoder:
        """The part that gives pictures."""
        return next(part for part in self.parts.values() if isinstance(part, Autoencoder))

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises FileError where files are missing, damaged, of another model, or do not fit each other."""
        for name, part in self.parts.items():
            part.check_kind(checkpoint.source(name))
        self.check_fit(checkpoint)
        for name, part in self.parts.items():
            part.check_files(checkpoint.source(name))

    @abstractmethod
    def check_fit(self, checkpoint: Checkpoint) -> None:
        """Raises FileError where the configurations of two parts contradict each other."""

    @abstractmethod
    def largest_side(self, checkpoint: Checkpoint) -> int:
        """Pixels; what the checkpoint's tables of positions hold."""

    @abstractmethod
    def texts(self, job: Job) -> list[Text]:
        """The texts to encode, in the order that the loop wants them; raises InputError where one is refused."""

    def check_references(self, job: Job) -> None:
        """Raises InputError where the control images cannot be used; called without any, too."""
        del job

    def encode_references(
        self, autoencoder: nn.Module, job: Job, generator: torch.Generator, device: str
    ) -> tuple[torch.Tensor, ...]:
        """The control images for the loop; ``generator`` draws their posterior."""
        raise AssertionError(f"{self.facts.title} has no recipe with control images")

    def reference_settings(self, job: Job) -> Hashable:
        """What decides the encoded control images besides the autoencoder, the pictures, the draws and the device.

        Whatever a model does not say, every field of the recipe and the size do.
        """
        return repr(job.recipe), job.size.width, job.size.height

    @abstractmethod
    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Shape of one picture's latents, with a first axis of 1."""

    def noise(self, generator: torch.Generator, job: Job) -> torch.Tensor:
        """The noise of one picture, drawn on the generator's device: in the run's dtype, as most references do.

        A bfloat16 draw is not promised to be the rounded float32 draw.
        """
        import torch

        from ..options import torch_dtype

        dtype = torch_dtype(job.dtype)
        return torch.randn(self.latent_shape(job.size), generator=generator, dtype=dtype, device=generator.device)

    @abstractmethod
    def schedule(self, job: Job, steps: int) -> Schedule:
        """The levels of a whole run of ``steps`` steps, on the CPU."""

    @abstractmethod
    def denoise(self, denoisers: Denoisers, picture: Denoising) -> torch.Tensor:
        """Runs the loop; returns the final latents."""

    @abstractmethod
    def decode(self, autoencoder: nn.Module, latents: torch.Tensor, job: Job) -> torch.Tensor:
        """Final latents -> uint8 [H, W, 3], CPU."""

    def to_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        """Final latents -> the scale that ComfyUI's VAE nodes use."""
        return self.autoencoder.to_comfy(latents, checkpoint.source(self.autoencoder.name))

    def from_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        """The inverse of :meth:`to_comfy`."""
        return self.autoencoder.from_comfy(latents, checkpoint.source(self.autoencoder.name))

    @abstractmethod
    def describe(self, job: Job, texts: Sequence[Text]) -> dict[str, Any]:
        """What the report says about the recipe: schedule, guidance, templates, encoder settings."""


def check_table(checkpoint: Checkpoint, part: str, longest_text: int, patch: int = 2) -> tuple[int, ...]:
    """The lengths of a Next-DiT's tables of positions (``axes_lens``), of which the first counts text tokens.

    Args:
        checkpoint: the weights.
        part: the denoiser.
        longest_text: positions that the first axis must have.
        patch: latent pixels per token and side, where the configuration does not say.

    Returns:
        (text, rows, columns, patch).

    Raises:
        FileError: they are no such numbers, or too few for a text.
    """
    config = checkpoint.config(part)
    lengths, size = config.get("axes_lens", (300, 512, 512)), config.get("patch_size", patch)
    numbers = [n for n in (*lengths, size) if isinstance(n, int) and n > 0] if isinstance(lengths, list | tuple) else []
    if len(numbers) != 4 or len(lengths) != 3:
        where = checkpoint.source(part).config_name
        raise FileError(f"{checkpoint.name!r}: {where} has axes_lens {lengths} and patch_size {size}.")
    if lengths[0] < longest_text:
        raise FileError(
            f"{checkpoint.name!r} has {lengths[0]} positions on its first axis, and {longest_text} are needed."
        )
    return tuple(numbers)
