"""What the sampler node asks for, and what is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeGuard

from ..errors import InputError
from ..options import Chosen
from ..pictures.sizes import Size, snap
from ..words import shown

if TYPE_CHECKING:
    import torch

    from ..handle import ControlImages, PipelineHandle
    from ..models.facts import ModelFacts
    from ..models.model import Model
    from ..models.recipe import Recipe

MAX_SEED = 2**64 - 1  # the largest that torch.Generator takes
_DOWNSCALES = {128: 16}  # FLUX.2's; channels -> pixels per latent pixel and side
_USUAL_DOWNSCALE = 8
MAX_STEPS = 10_000
MIN_DENOISE = 0.01  # the schedule has steps / denoise steps
MAX_BATCH = 4096


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """The sampler node's inputs.

    Attributes:
        recipe: a name of the model's recipes.
        prompt, negative_prompt: as typed.
        width, height: pixels, before snapping; not used with ``latent``.
        steps: 1 or more.
        guidance_scale: as the model understands it.
        seed: of the first picture, 0..2**64 - 1; picture i of a batch uses seed + i.
        trigger_word: replaces ``[trigger]`` and ``[name]`` in the prompt; empty leaves them as they are.
        system_prompt: empty is the recipe's own.
        batch_size: pictures.
        denoise: 0.01 to 1; below 1 the last part of a longer schedule runs, from ``latent``.
        latent: [1 or batch_size, C, h, w], or with frames [1 or batch_size, C, frames, h, w], in ComfyUI's scale; None
            is noise alone.
        latent_downscale: pixels per latent pixel and side, where the node that made the latent says so.
        control: reference images, or None.
        recipe_options: what the user changed of the options that only some recipes read.
    """

    recipe: str
    prompt: str
    negative_prompt: str = ""
    width: int = 1024
    height: int = 1024
    steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 42
    trigger_word: str = ""
    system_prompt: str = ""
    batch_size: int = 1
    denoise: float = 1.0
    latent: torch.Tensor | None = None
    latent_downscale: int | None = None
    control: ControlImages | None = None
    recipe_options: Chosen = field(default_factory=Chosen)


def check_request(model: ModelFacts, request: SampleRequest) -> Recipe:
    """Refuses what cannot be run before anything is loaded; returns the recipe with the user's options in it.

    Raises:
        InputError: names the value, its range and what to do.
    """
    for name in ("recipe", "prompt", "negative_prompt", "system_prompt", "trigger_word"):
        text = getattr(request, name)
        if not isinstance(text, str):
            raise InputError(f"{name} is {shown(text)}: it must be a text.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} holds half a character (a lone surrogate) at position {error.start}.") from error
    if request.recipe not in model.recipes:
        raise InputError(f"{model.title} has no recipe {shown(request.recipe)}. It has: {', '.join(model.recipes)}.")
    _check_numbers(request)
    recipe = model.recipes[request.recipe]
    if request.system_prompt and not model.takes_system_prompt:
        raise InputError(f"{model.title} takes no system prompt: its template has no place for one. Empty it.")
    _check_control(model, recipe, len(request.control.images) if request.control is not None else 0)
    return recipe.configured(request.recipe_options, model.recipe_options)


def check_seed(seed: object) -> None:
    """Raises InputError where a seed is none that a generator takes."""
    if not _is_whole(seed) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {shown(seed)}: choose 0 to 2^64 - 1.")


def _check_numbers(request: SampleRequest) -> None:
    for name, low, high in (("steps", 1, MAX_STEPS), ("batch_size", 1, MAX_BATCH)):
        value = getattr(request, name)
        if not _is_whole(value) or not low <= value <= high:
            raise InputError(f"{name} is {shown(value)}: choose {low} to {high}.")
    for name in ("width", "height"):
        if not _is_whole(getattr(request, name)):
            raise InputError(f"{name} is {shown(getattr(request, name))}: choose a whole number of pixels.")
    for name, low, high in (("denoise", MIN_DENOISE, 1), ("guidance_scale", 0, 1000)):
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(f"{name} is {shown(value)}: choose {low} to {high}.")
    check_seed(request.seed)
    if request.seed + request.batch_size - 1 > MAX_SEED:
        raise InputError(
            f"seed is {request.seed}, and the last of {request.batch_size} pictures would need one above 2^64 - 1. "
            "Choose a smaller one."
        )
    if request.denoise < 1 and request.latent is None:
        raise InputError("denoise is below 1, but no latent is connected: there is nothing to start from.")


def _is_whole(value: object) -> TypeGuard[int]:
    # True is a number to Python, and to nobody else
    return isinstance(value, int) and not isinstance(value, bool)


def _check_control(model: ModelFacts, recipe: Recipe, given: int) -> None:
    if given <= recipe.control_images:
        return
    takes = f"at most {recipe.control_images}" if recipe.control_images else "no"
    fitting = [other.name for other in model.recipes.values() if other.control_images >= given]
    whose = f"The recipe {recipe.name!r} of {model.title}" if fitting else model.title
    way_out = f"choose the recipe {fitting[0]!r}" if fitting else "load a model that edits images"
    raise InputError(
        f"{whose} takes {takes} control images; connected: {given}. Disconnect `control` from the sampler, or "
        f"{way_out}."
    )


def settled(model: ModelFacts, request: SampleRequest) -> SampleRequest:
    """The request with what its latent says in the other inputs' places.

    An empty latent, which holds zeros alone, is whatever model's it was made for: it gives its size, and is no start.
    Where denoise is below 1, it becomes an empty one of this model, as in ComfyUI. A batch of latents is a batch of
    pictures.

    Raises:
        InputError: it is no latent, or its batch and batch_size contradict each other.
    """
    import torch

    latent = request.latent
    if latent is None:
        return request
    check_latent(latent)
    count = latent.shape[0]
    if count != 1 and request.batch_size not in (1, count):
        asked = request.batch_size
        raise InputError(f"The latent holds {count} pictures, and batch_size is {asked}. Set it to 1 or {count}.")
    request = replace(request, batch_size=max(request.batch_size, count))
    frames = latent.shape[2] if latent.ndim == 5 else 1
    if bool(torch.any(latent)) or frames != 1:
        return request
    scale = request.latent_downscale or _downscale(model, latent)
    width, height = latent.shape[-1] * scale, latent.shape[-2] * scale
    if request.denoise == 1:
        return replace(request, latent=None, width=width, height=height)
    own = model.latent
    shape = (count, own.channels, *([1] if own.frames else []), height // own.downscale, width // own.downscale)
    return replace(request, latent=torch.zeros(shape))


def check_latent(latent: object) -> None:
    """Raises InputError where the samples of a LATENT are no picture's."""
    import torch

    if not isinstance(latent, torch.Tensor) or latent.ndim not in (4, 5) or not latent.is_floating_point():
        shape = list(latent.shape) if isinstance(latent, torch.Tensor) else shown(latent)
        raise InputError(f"The latent is no picture's: its samples are {shape}. Encode a picture with a VAE.")
    if latent.numel() == 0:
        raise InputError(f"The latent has shape {list(latent.shape)}: it holds no picture.")
    if not bool(torch.isfinite(latent).all()):
        raise InputError("The latent holds NaN or Inf: what made it failed.")


def _downscale(model: ModelFacts, latent: torch.Tensor) -> int:
    """Pixels per latent pixel of an empty latent that does not say: by its channels, of this model or ComfyUI's own."""
    if latent.shape[1] == model.latent.channels:
        return model.latent.downscale
    return _DOWNSCALES.get(latent.shape[1], _USUAL_DOWNSCALE)


def schedule_length(request: SampleRequest) -> int:
    """Steps of the whole schedule, of which the last ``steps`` run: ComfyUI's rule for denoise."""
    return request.steps if request.denoise == 1 else int(request.steps / request.denoise)


def size_of(model: Model, handle: PipelineHandle, recipe: Recipe, request: SampleRequest) -> Size:
    """The size that is rendered: the given latent's, or the one asked for, as the recipe snaps it.

    Raises:
        InputError: no picture of that size can be rendered, or the latent is of another model.
    """
    largest = model.largest_side(handle.checkpoint)
    if request.latent is None:
        return snap(request.width, request.height, recipe.size, largest)
    shape, latent, title = tuple(request.latent.shape), model.facts.latent, model.facts.title
    axes = "frames, h, w" if latent.frames else "h, w"
    if len(shape) != (5 if latent.frames else 4) or shape[1] != latent.channels:
        raise InputError(
            f"The latent has shape {list(shape)}; {title} needs [batch, {latent.channels}, {axes}]. "
            "Encode the picture with this model's VAE."
        )
    width, height = shape[-1] * latent.downscale, shape[-2] * latent.downscale
    fits = width % recipe.size.multiple == height % recipe.size.multiple == 0
    if not fits or min(width, height) == 0 or max(width, height) > largest:
        raise InputError(
            f"The latent stands for {width} x {height} pixels; {title} needs multiples of "
            f"{recipe.size.multiple}, up to {largest}. Resize it first."
        )
    size = Size(width, height)
    wanted = model.latent_shape(size)
    if shape[1:] != wanted[1:]:
        # a model may render another size than it saves
        raise InputError(
            f"The latent has shape {list(shape)}, and {title} renders pictures of its size with {list(wanted[1:])}. "
            "Use a size that is a multiple of 16 and not above one megapixel."
        )
    return size
