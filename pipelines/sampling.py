"""One run of the sampler node: from a handle and a request to pictures and a report. Model-independent.

The order is fixed: check the request, encode, apply LoRAs, denoise each picture of the batch alone, decode, report.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .engine import Engine
from .errors import InputError
from .handle import ControlImages, PipelineHandle
from .loading import torch_dtype
from .models import find_model
from .models.facts import ModelFacts, Recipe, RecipeOptions
from .models.runtime import DenoiseJob, Embedding, ModelRuntime, Typed
from .observer import Observer
from .pixels import from_image
from .report import describe_loras, describe_memory, describe_weights, peak_memory, versions
from .sizes import Size, snap

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**53  # the largest whole number that the editor, a JavaScript program, holds exactly
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
        seed: of the first picture, 0..2**53; picture i of a batch uses seed + i.
        trigger_word: replaces ``[trigger]`` and ``[name]`` in the prompt; empty leaves them as they are.
        system_prompt: empty is the recipe's own.
        batch_size: pictures.
        denoise: 0.01 to 1; below 1 the last part of a longer schedule runs, from ``latent``.
        latent: [1 or batch_size, C, h, w] in ComfyUI's scale, or None.
        control: reference images, or None.
        recipe_options: what only some recipes read, or None for the recipe's own.
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
    control: ControlImages | None = None
    recipe_options: RecipeOptions | None = None


@dataclass(frozen=True, eq=False)
class SampleResult:
    """What the sampler node hands on.

    Attributes:
        images: [B, H, W, 3], float32; every value is a whole number of 255ths, so that saving gives the exact pixels.
        latent: [B, C, h, w], float32, in ComfyUI's scale.
        sigmas: [steps + 1], float32.
        size: as rendered.
        report: JSON-able.
        notes: what the user should see on the node.
    """

    images: torch.Tensor
    latent: torch.Tensor
    sigmas: torch.Tensor
    size: Size
    report: dict[str, Any]
    notes: tuple[str, ...]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


def sample(engine: Engine, handle: PipelineHandle, request: SampleRequest, observer: Observer) -> SampleResult:
    """Runs a request. Whatever it raises, the engine stays usable and its weights are as they should be.

    Raises:
        AITKError: bad input, files that do not fit, out of memory; or whatever the observer raises to interrupt.
    """
    import torch

    model = find_model(handle.model)
    recipe = check_request(model, handle, request)
    plan = engine.plan_loras(handle, recipe)
    size = _size(model, handle, recipe, request)
    engine.check_weights(handle)
    memory = engine.plan_memory(handle, size, plan)
    runtime = engine.runtime(model)
    if request.latent is not None:
        _check_latent(request.latent, runtime.noise_shape(size, recipe), model)
    prompt, flags = insert_trigger(request.prompt, request.trigger_word), ""
    if recipe.prompt_flags:
        prompt, flags = cut_flags(prompt)
    typed = Typed(prompt, request.negative_prompt, request.system_prompt)
    texts = runtime.texts(recipe, handle, typed, request.guidance_scale)
    references = [from_image(image) for image in request.control.images] if request.control is not None else []
    runtime.check_control([(image.shape[1], image.shape[0]) for image in references], recipe)
    before = replace(engine.counters)
    clock = _Clock()
    device = engine.device
    # ComfyUI runs nodes in inference mode, whose tensors are of no use outside of it; here every host is alike
    with torch.inference_mode(False), torch.no_grad(), peak_memory(device) as peak, engine.device_memory():
        with clock.phase("encode"):
            conditioning = engine.embeddings(handle, texts, plan, observer)
        starts = _starts(engine, handle, recipe, request, size, references, observer, clock)
        with clock.phase("prepare"):
            engine.apply_loras(handle, "transformer", plan, observer)
            # read now: the files may be gone when the picture is done
            sources = {"model": describe_weights(engine, handle), "loras": describe_loras(plan, handle)}
        sigmas = runtime.sigmas(recipe, schedule_length(request), size)[-(request.steps + 1) :]
        latents = _denoise_batch(engine, handle, recipe, request, size, conditioning, starts, sigmas, observer, clock)
        observer.stage("decoding")
        with clock.phase("decode"), engine.on_device(handle, "vae", observer) as vae:
            images = []
            for latent in latents:
                observer.check()
                images.append(runtime.decode(vae, latent.to(device), recipe, size))
    notes = (*size.notes, *memory.notes, *_text_notes(model, request, prompt, flags, conditioning))
    report = {
        **sources,
        "recipe": recipe.name,
        **runtime.describe(recipe, texts),
        **_describe_request(request, size),
        "system_prompt": request.system_prompt or recipe.system_prompt,
        "noise_device": "cpu" if recipe.noise == "cpu" else device,
        "prompt": prompt,
        "negative_prompt": request.negative_prompt if len(texts) > 1 else None,
        "control_images": [
            {"size": [image.shape[1], image.shape[0]], "sha256": hashlib.sha256(image.numpy().tobytes()).hexdigest()}
            for image in references
        ],
        "sigmas": [round(float(value), 7) for value in sigmas],
        "notes": list(notes),
        "work": {name: value - getattr(before, name) for name, value in asdict(engine.counters).items()},
        "seconds": clock.seconds,
        "memory": describe_memory(memory),
        "peak_memory": peak,
        "device": device,
        "versions": versions(),
    }
    comfy = torch.cat([runtime.to_comfy(latent.float(), handle.checkpoint) for latent in latents])
    return SampleResult(to_images(images), comfy, sigmas, size, report, notes)


def to_images(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [H, W, 3] each -> IMAGE [B, H, W, 3], float32, 0..1: whole 255ths, which saving gives back exactly."""
    import torch

    return torch.stack(list(pictures)).to(torch.float32) / 255


def _describe_request(request: SampleRequest, size: Size) -> dict[str, Any]:
    latent = request.latent
    return {
        "size": {
            "asked": [request.width, request.height] if latent is None else "the latent's",
            "rendered": [size.width, size.height],
        },
        "steps": request.steps,
        "denoise": request.denoise,
        "latent_sha256": latent
        if latent is None
        else hashlib.sha256(latent.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest(),
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "batch_size": request.batch_size,
    }


def check_request(model: ModelFacts, handle: PipelineHandle, request: SampleRequest) -> Recipe:
    """Refuses what cannot be run before anything is loaded; returns the recipe with the user's options in it.

    Raises:
        InputError: names the value, its range and what to do.
    """
    if request.recipe not in model.recipes:
        raise InputError(f"{model.title} has no recipe {request.recipe!r}. It has: {', '.join(model.recipes)}.")
    if not 1 <= request.steps <= MAX_STEPS:
        raise InputError(f"steps is {request.steps}: choose 1 to {MAX_STEPS}.")
    if not 1 <= request.batch_size <= MAX_BATCH:
        raise InputError(f"batch_size is {request.batch_size}: choose 1 to {MAX_BATCH}.")
    if not 0 <= request.seed <= MAX_SEED:
        raise InputError(f"seed is {request.seed}: choose 0 to 2^53 ({MAX_SEED}).")
    if not MIN_DENOISE <= request.denoise <= 1:
        raise InputError(f"denoise is {request.denoise}: choose {MIN_DENOISE} to 1.")
    if not 0 <= request.guidance_scale <= 1000:
        raise InputError(f"guidance_scale is {request.guidance_scale}: choose 0 to 1000.")
    if request.denoise < 1 and request.latent is None:
        raise InputError("denoise is below 1, but no latent is connected: there is nothing to start from.")
    for name in ("prompt", "negative_prompt", "system_prompt", "trigger_word"):
        try:
            getattr(request, name).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} holds half a character (a lone surrogate) at position {error.start}.") from error
    recipe = model.recipes[request.recipe]
    _check_control(model, recipe, len(request.control.images) if request.control is not None else 0)
    return recipe if request.recipe_options is None else recipe.configured(request.recipe_options)


def _check_latent(latent: torch.Tensor, wanted: tuple[int, ...], model: ModelFacts) -> None:
    """A model may render another size than it saves."""
    if tuple(latent.shape[1:]) != wanted[1:]:
        raise InputError(
            f"The latent has shape {list(latent.shape)}, and {model.title} renders pictures of its size with "
            f"{list(wanted[1:])}. Use a size that is a multiple of 16 and not above one megapixel."
        )


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


def schedule_length(request: SampleRequest) -> int:
    """Steps of the whole schedule, of which the last ``steps`` run: ComfyUI's rule for denoise."""
    return request.steps if request.denoise == 1 else int(request.steps / request.denoise)


def insert_trigger(prompt: str, trigger_word: str) -> str:
    """Replaces ``[trigger]`` and ``[name]`` as AI Toolkit does (toolkit/prompt_utils.py); without a word, nothing."""
    if not trigger_word:
        return prompt
    return prompt.replace("[name]", trigger_word).replace("[trigger]", trigger_word)


def cut_flags(prompt: str) -> tuple[str, str]:
    """What AI Toolkit takes for the prompt, and the flags behind it, which set a job's size, seed, ... per sample."""
    text, dashes, flags = prompt.partition("--")
    return text.strip(), (dashes + flags).strip()


def seeded(device: str, seed: int) -> torch.Generator:
    """A generator of a device, at its start."""
    import torch

    return torch.Generator(device).manual_seed(seed)


def initial_noise(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The noise of one picture: drawn in the run's dtype on the generator's device, as every reference does.

    A bfloat16 draw is not promised to be the rounded float32 draw.
    """
    import torch

    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def _size(model: ModelFacts, handle: PipelineHandle, recipe: Recipe, request: SampleRequest) -> Size:
    largest = model.largest_side(handle.checkpoint)
    if request.latent is None:
        return snap(request.width, request.height, recipe.size, largest)
    shape = tuple(request.latent.shape)
    if len(shape) != 4 or shape[1] != model.latent_channels:
        raise InputError(
            f"The latent has shape {list(shape)}; {model.title} needs [batch, {model.latent_channels}, h, w]. "
            "Encode the picture with this model's VAE."
        )
    if shape[0] not in (1, request.batch_size):
        raise InputError(f"The latent holds {shape[0]} pictures, and batch_size is {request.batch_size}.")
    width, height = shape[3] * model.latent_downscale, shape[2] * model.latent_downscale
    fits = width % recipe.size.multiple == height % recipe.size.multiple == 0
    if not fits or min(width, height) == 0 or max(width, height) > largest:
        raise InputError(
            f"The latent stands for {width} x {height} pixels; {model.title} needs multiples of "
            f"{recipe.size.multiple}, up to {largest}. Resize it first."
        )
    return Size(width, height)


@dataclass(frozen=True, eq=False)
class _Start:
    """Where one picture begins: what draws its noise next, and what the loop gets of the references, on the CPU."""

    generator: torch.Generator
    control: tuple[torch.Tensor, ...]


def _starts(
    engine: Engine, handle: PipelineHandle, recipe: Recipe, request: SampleRequest, size: Size,
    references: Sequence[torch.Tensor], observer: Observer, clock: _Clock,
) -> list[_Start]:  # fmt: skip
    """The start of each picture of the batch. References are encoded before noise is drawn, as the trainer does."""
    runtime, device = engine.runtime(find_model(handle.model)), engine.device
    noise_device = "cpu" if recipe.noise == "cpu" else device
    seeds = range(request.seed, request.seed + request.batch_size)
    generators = [seeded(noise_device, seed) for seed in seeds]
    controls: list[tuple[torch.Tensor, ...]] = [()] * len(seeds)
    if references:
        observer.stage("encoding the control images")
        with clock.phase("encode control"), engine.on_device(handle, "vae", observer) as vae:
            for index, (seed, noise) in enumerate(zip(seeds, generators, strict=True)):
                observer.check()
                if recipe.posterior == "mean" and index > 0:
                    # nothing is drawn: all pictures have the same
                    controls[index] = controls[0]
                    continue
                shared = recipe.posterior == "trainer" and device == noise_device
                generator = noise if shared else seeded(device, seed)
                found = runtime.encode_control(
                    vae, references, recipe, size, torch_dtype(handle.dtype), generator, device
                )
                controls[index] = tuple(value.cpu() for value in found)
    return [_Start(generator, control) for generator, control in zip(generators, controls, strict=True)]


def _denoise_batch(
    engine: Engine, handle: PipelineHandle, recipe: Recipe, request: SampleRequest, size: Size,
    conditioning: list[Embedding], starts: Sequence[_Start], sigmas: torch.Tensor, observer: Observer, clock: _Clock,
) -> list[torch.Tensor]:  # fmt: skip
    """Final latents of each picture, [1, C, h, w], on the CPU."""
    runtime = engine.runtime(find_model(handle.model))
    device = engine.device
    total = request.steps * request.batch_size
    finished = []
    observer.stage("sampling")
    with clock.phase("sample"), engine.on_device(handle, "transformer", observer) as transformer:
        conditioning = [Embedding(e.embeds.to(device), e.mask.to(device), e.cut_tokens) for e in conditioning]
        for index, start in enumerate(starts):
            done = index * request.steps

            def on_step(step: int, x0: torch.Tensor, done: int = done) -> None:
                observer.step(done + step, total, x0)

            noise = initial_noise(start.generator, runtime.noise_shape(size, recipe), torch_dtype(handle.dtype))
            job = DenoiseJob(
                recipe=recipe,
                latents=start_latents(runtime, handle, request, noise, sigmas, index).to(device),
                sigmas=sigmas.to(device),
                conditioning=conditioning,
                control=tuple(value.to(device) for value in start.control),
                guidance_scale=request.guidance_scale,
                attention=handle.options.transformer_attention,
                on_step=on_step,
                check=observer.check,
            )
            finished.append(runtime.denoise(transformer, job).cpu())
    return finished


def start_latents(
    runtime: ModelRuntime,
    handle: PipelineHandle,
    request: SampleRequest,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    index: int,
) -> torch.Tensor:
    """Where picture ``index`` starts: noise, mixed with the given latent as far as the first sigma leaves it."""
    sigma = float(sigmas[0])
    if request.latent is None or sigma == 1:
        return noise
    given = request.latent[index if len(request.latent) > 1 else 0][None].to(noise.device).float()
    given = runtime.from_comfy(given, handle.checkpoint)
    return ((1 - sigma) * given + sigma * noise.float()).to(noise.dtype)


def _text_notes(
    model: ModelFacts, request: SampleRequest, prompt: str, flags: str, conditioning: list[Embedding]
) -> Iterator[str]:
    if not prompt.strip():
        yield "the prompt is empty"
    if flags:
        yield f"{flags!r} was cut off the prompt: AI Toolkit reads flags from '--' on. Set the node's inputs instead"
    for name, embedding in zip(("prompt", "negative prompt"), conditioning, strict=False):
        if embedding.cut_tokens:
            length = embedding.mask.shape[1]
            yield f"the {name} was cut at {length} tokens: its last {embedding.cut_tokens} were left out"
    if request.negative_prompt and len(conditioning) < 2:
        why = f"{model.title} has its guidance built in"
        if model.guidance == "classifier-free":
            why = "guidance_scale is 1 or less"
        yield f"the negative prompt is not used: {why}"
