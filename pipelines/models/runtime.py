"""What the shared sampler asks of a model's code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .facts import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..checkpoint import Checkpoint
    from ..handle import PipelineHandle, Quantization
    from ..sizes import Size
    from ..sources.source import Source


@dataclass(frozen=True)
class Typed:
    """The texts as the user wrote them; an empty ``system_prompt`` is the recipe's own."""

    prompt: str
    negative_prompt: str
    system_prompt: str


@dataclass(frozen=True)
class Text:
    """A text as the encoder gets it, with everything that changes its embedding: the key of the prompt cache.

    Attributes:
        text: template and prompt.
        length: tokens at most; longer texts are cut. Shorter ones are padded where the model's encoder does so.
        settings: what else the model's encoder can be told; hashable, made and read by the model alone.
    """

    text: str
    length: int
    settings: Any


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded text, on the CPU.

    Attributes:
        embeds: [1, length, D], in the run's dtype.
        mask: [1, length], int64, 1 at the tokens.
        cut_tokens: how many tokens did not fit.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    cut_tokens: int


@dataclass(frozen=True)
class DenoiseJob:
    """Everything the loop of one picture needs.

    Attributes:
        recipe: with the user's options in it.
        latents: [1, C, h, w], the start, in the run's dtype, on the compute device.
        sigmas: [steps + 1], float32, on the compute device, falling to 0.
        conditioning: the embeddings of the recipe's texts, in order, on the compute device.
        guidance_scale: as the user gave it.
        attention: the kernel of the transformer's attention.
        on_step: called after each step with the number of steps done and the estimated clean latent [1, C, h, w].
        check: called before each model call; raises to interrupt.
        control: what the model made of the reference images, on the compute device; empty without any.
    """

    recipe: Recipe
    latents: torch.Tensor
    sigmas: torch.Tensor
    conditioning: Sequence[Embedding]
    guidance_scale: float
    attention: str
    on_step: Callable[[int, torch.Tensor], None]
    check: Callable[[], None]
    control: tuple[torch.Tensor, ...] = ()


class ModelRuntime(Protocol):
    """One model's code. Its methods hold no state: weights come in, pictures go out."""

    def check_weights(self, part: str, checkpoint: Checkpoint) -> None:
        """Raises FileError where a part's files are missing, damaged or of another model; reads no weights."""
        ...

    def load(
        self, source: Source, dtype: torch.dtype, quantization: Quantization, check: Callable[[], None]
    ) -> nn.Module:
        """Loads ``transformer``, ``text_encoder`` or ``vae`` to the CPU; ``check`` raises to interrupt."""
        ...

    def lora_root(self, module: nn.Module) -> nn.Module:
        """The module in a loaded part whose names LoRA files use."""
        ...

    def empty(self, source: Source) -> nn.Module:
        """What :meth:`lora_root` gives of this part, with shapes but without storage; raises FileError.

        Its names are the source's, and it has what :meth:`load` fills and nothing else: memory is planned by it.
        """
        ...

    def blocks(self, part: str, module: nn.Module) -> Sequence[nn.Module]:
        """The main blocks, in the order of their calls, that can be kept off the device until their turn.

        Args:
            part: which.
            module: the part as :meth:`load` or :meth:`empty` makes it.
        """
        ...

    def texts(self, recipe: Recipe, handle: PipelineHandle, typed: Typed, guidance_scale: float) -> list[Text]:
        """The texts to encode, in the order that the loop wants them."""
        ...

    def encode(self, text_encoder: nn.Module, text: Text, device: str) -> Embedding:
        """Encodes one text on ``device``."""
        ...

    def activation_bytes(self, part: str, size: Size | None, dtype: torch.dtype) -> int:
        """About how many bytes a part needs on the device beside its weights, for one picture of ``size``."""
        ...

    def check_control(self, sizes: Sequence[tuple[int, int]], recipe: Recipe) -> None:
        """Raises InputError where the reference images cannot be used; sizes are width and height in pixels, in order,
        and none where there are no images."""
        ...

    def encode_control(
        self,
        vae: nn.Module,
        images: Sequence[torch.Tensor],
        recipe: Recipe,
        size: Size,
        dtype: torch.dtype,
        generator: torch.Generator,
        device: str,
    ) -> tuple[torch.Tensor, ...]:
        """Reference images, each uint8 [H, W, 3] on the CPU, for the loop; ``generator`` draws their posterior."""
        ...

    def noise_shape(self, size: Size, recipe: Recipe) -> tuple[int, ...]:
        """Shape of one picture's latents."""
        ...

    def sigmas(self, recipe: Recipe, steps: int, size: Size) -> torch.Tensor:
        """[steps + 1], float32, CPU: the noise level before each step, then 0."""
        ...

    def denoise(self, transformer: nn.Module, job: DenoiseJob) -> torch.Tensor:
        """Runs the loop; returns the final latents [1, C, h, w]."""
        ...

    def decode(self, vae: nn.Module, latents: torch.Tensor, recipe: Recipe, size: Size) -> torch.Tensor:
        """[1, C, h, w] -> uint8 [H, W, 3], CPU."""
        ...

    def to_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        """Model latents -> the scale that ComfyUI's VAE nodes use."""
        ...

    def from_comfy(self, latents: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
        """The inverse of :meth:`to_comfy`."""
        ...

    def describe(self, recipe: Recipe, texts: Sequence[Text]) -> dict[str, Any]:
        """What the report says about the recipe: schedule, guidance, templates, encoder settings."""
        ...
