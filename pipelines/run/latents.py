"""Between pictures and a model's latents, by its own autoencoder: one part is loaded, and no text, LoRA or denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import DeviceMemoryError, InputError
from ..models.model import Job, Typed
from ..options import torch_dtype
from ..pictures.sizes import Size, snap
from .request import SampleRequest, check_latent, check_request, size_of

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..handle import PipelineHandle
    from ..models.model import Model
    from ..models.recipe import Recipe
    from ..observer import Observer

T = TypeVar("T")
_RETRY = "out of memory: once more, with everything else sent away"


class Encoded(NamedTuple):
    """``latent``: [B, C, h, w], float32, on the CPU, in ComfyUI's scale; ``notes``: what the user should see."""

    latent: torch.Tensor
    notes: tuple[str, ...]


def encode_images(
    engine: Engine, handle: PipelineHandle, recipe: str, images: torch.Tensor, observer: Observer
) -> Encoded:
    """Pictures -> the LATENT that the sampler takes: the mean of what the autoencoder gives.

    As with ComfyUI's VAE Encode, the middle of a picture that is no valid size is taken, here of the recipe's sizes.
    Where the model renders smaller pictures than it saves, they are scaled down to that.

    Args:
        engine: with the weights.
        handle: the pipeline.
        recipe: whose sizes.
        images: [B, H, W, 3], of 0..1.
        observer: told of a load, asked for interruption.

    Raises:
        AITKError: no such recipe, a size that cannot be rendered, files that do not fit, or out of memory.
    """
    work = _Work.of(engine, handle, recipe, observer)
    height, width = images.shape[1:3]
    size = snap(width, height, work.recipe.size, work.model.largest_side(handle.checkpoint))
    if size.width > width or size.height > height:
        raise InputError(
            f"The picture is {width} x {height} pixels, and {work.model.facts.title} renders at least {size.width} x "
            f"{size.height} of it. Scale it up."
        )
    cut = _fitting(_middle(images, size), work.model, size)
    latents = work.done(lambda: [_encode(work, one, size, number) for number, one in enumerate(cut, 1)])
    whole = (size.width, size.height) == (width, height)
    notes = () if whole else (f"the middle {size.width} x {size.height} of {width} x {height} pixels",)
    return Encoded(_stacked(latents), notes)


def decode_latents(
    engine: Engine, handle: PipelineHandle, recipe: str, latent: torch.Tensor, observer: Observer
) -> torch.Tensor:
    """A LATENT -> pictures [B, H, W, 3], as the sampler decodes its own.

    Args:
        engine: with the weights.
        handle: the pipeline.
        recipe: whose roundings.
        latent: [B, C, h, w], in ComfyUI's scale.
        observer: told of a load, asked for interruption.

    Raises:
        AITKError: no such recipe, a latent of another model, files that do not fit, or out of memory.
    """
    import torch

    work = _Work.of(engine, handle, recipe, observer)
    check_latent(latent)
    size = size_of(work.model, handle, work.recipe, replace(work.request, latent=latent))
    pictures = work.done(lambda: [_decode(work, one, size, number) for number, one in enumerate(latent, 1)])
    return torch.stack(pictures).to(torch.float32) / 255


@dataclass(frozen=True, eq=False)
class _Work:
    """What both ways need, once it is decided; nothing is loaded."""

    engine: Engine
    handle: PipelineHandle
    model: Model
    recipe: Recipe
    request: SampleRequest
    observer: Observer

    @classmethod
    def of(cls, engine: Engine, handle: PipelineHandle, recipe: str, observer: Observer) -> _Work:
        # no LoRA is for an autoencoder
        handle = replace(handle, loras=())
        model = engine.model(handle, observer)
        request = SampleRequest(recipe, prompt="")
        return cls(engine, handle, model, check_request(model.facts, request), request, observer)

    def done(self, work: Callable[[], T]) -> T:
        """The result of work in a turn of the engine; once more where memory ran out."""
        import torch

        def tried() -> T:
            # ComfyUI runs nodes in inference mode, whose tensors are of no use outside of it
            with torch.inference_mode(False), torch.no_grad(), self.engine.device_memory():
                return work()

        with self.engine.turn(self.observer):
            try:
                return tried()
            except DeviceMemoryError:
                self.observer.stage(_RETRY)
            # the error is gone, and with it what it held
            self.engine.send_away(self.handle)
            return tried()

    def wanted(self, size: Size) -> Wanted:
        return self.engine.resolve(self.handle, self.recipe, size)

    def job(self, wanted: Wanted, size: Size) -> Job:
        return Job(
            recipe=self.recipe,
            checkpoint=self.handle.checkpoint,
            dtype=self.handle.dtype,
            options=self.handle.options,
            quantization={name: key.quantization for name, key in wanted.keys.items()},
            size=size,
            guidance_scale=self.request.guidance_scale,
            typed=Typed(""),
        )


def _encode(work: _Work, image: torch.Tensor, size: Size, number: int) -> torch.Tensor:
    part = work.model.autoencoder
    wanted = work.wanted(size)
    with work.engine.on_device(wanted, part.name, work.observer) as autoencoder:
        work.observer.stage(f"encoding picture {number}")
        work.observer.check()
        pixels = (image * 2 - 1)[None].to(work.engine.device, torch_dtype(work.handle.dtype))
        latents = part.encode(autoencoder, pixels).cpu().float()
    return work.model.to_comfy(latents, work.handle.checkpoint)


def _decode(work: _Work, latent: torch.Tensor, size: Size, number: int) -> torch.Tensor:
    wanted = work.wanted(size)
    with work.engine.on_device(wanted, work.model.autoencoder.name, work.observer) as autoencoder:
        work.observer.stage(f"decoding picture {number}")
        work.observer.check()
        own = work.model.from_comfy(latent[None].float(), work.handle.checkpoint)
        own = own.to(work.engine.device, torch_dtype(work.handle.dtype))
        return work.model.decode(autoencoder, own, work.job(wanted, size))


def _middle(images: torch.Tensor, size: Size) -> torch.Tensor:
    """[B, 3, height, width]: the middle of pictures [B, H, W, 3 or 4], without alpha."""
    top, left = (images.shape[1] - size.height) // 2, (images.shape[2] - size.width) // 2
    cut = images[:, top : top + size.height, left : left + size.width, :3]
    return cut.detach().cpu().float().permute(0, 3, 1, 2)


def _fitting(images: torch.Tensor, model: Model, size: Size) -> torch.Tensor:
    """The pictures at the size that the model denoises for pictures of this size."""
    from torch.nn.functional import interpolate

    *_, height, width = model.latent_shape(size)
    rendered = (height * model.facts.latent.downscale, width * model.facts.latent.downscale)
    if rendered == tuple(images.shape[2:]):
        return images
    return interpolate(images, size=rendered, mode="bicubic", antialias=True)


def _stacked(latents: Sequence[Any]) -> torch.Tensor:
    import torch

    return torch.cat(list(latents))
