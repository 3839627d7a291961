"""A run, once everything is decided: the phases that bring parts to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..layers.step_cache import StepCache
from ..models.model import Denoising, Job
from ..pictures.picture import Picture
from .clock import Clock
from .request import check_request, schedule_length, settled, size_of
from .texts import typed_texts

if TYPE_CHECKING:
    import torch

    from ..engine.counters import Counters
    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..handle import PipelineHandle
    from ..models.schedule import Schedule
    from ..observer import Observer
    from ..parts.encoder import Embedding
    from .request import SampleRequest
    from .start import Start


@dataclass(eq=False)
class Progress:
    """What a request has come to so far; a try that runs out of memory leaves it to the next one.

    Attributes:
        before: the engine's counters when it began.
        clock: of its phases, over all tries.
        latents: of the pictures that are denoised, on the CPU.
        images: uint8 [H, W, 3], of those that are decoded.
        retried: whether memory ran out once.
        step_cache: of its steps.
    """

    before: Counters
    clock: Clock = field(default_factory=Clock)
    latents: list[torch.Tensor] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    retried: bool = False
    step_cache: StepCache = field(default_factory=lambda: StepCache(0))


@dataclass(frozen=True, eq=False)
class Run:
    """What a run is, once everything is decided: made before anything is loaded.

    Attributes:
        engine: with the weights.
        wanted: the parts.
        job: what the model is asked for.
        request: the node's inputs.
        schedule: the levels that run.
        observer: told of progress, asked for interruption.
        progress: what it has come to.
    """

    engine: Engine
    wanted: Wanted
    job: Job
    request: SampleRequest
    schedule: Schedule
    observer: Observer
    progress: Progress

    @property
    def is_denoised(self) -> bool:
        """Whether nothing is left for the denoisers."""
        return len(self.progress.latents) == self.request.batch_size

    @property
    def seeds(self) -> range:
        return range(self.request.seed, self.request.seed + self.request.batch_size)

    def denoise(self, conditioning: Sequence[Embedding], begun: Sequence[Start]) -> None:
        """Brings the rest of the pictures to their final latents."""
        device, progress = self.engine.device, self.progress
        with (
            progress.clock.phase("sample"),
            self.engine.denoisers(self.wanted, progress.step_cache, self.observer) as denoisers,
        ):
            conditioning = [embedding.to(device) for embedding in conditioning]
            for index in range(len(progress.latents), self.request.batch_size):
                progress.step_cache.forget()
                picture = self._picture(index, begun[index], conditioning)
                progress.latents.append(self.wanted.model.denoise(denoisers, picture).cpu())

    def _picture(self, index: int, start: Start, conditioning: Sequence[Embedding]) -> Denoising:
        device, model = self.engine.device, self.wanted.model
        done, total = index * self.request.steps, self.request.steps * self.request.batch_size
        noise = model.noise(start.generator, self.job)
        return Denoising(
            job=self.job,
            latents=self.schedule.start(noise, self._given(index, noise.device)).to(device),
            schedule=self.schedule.to(device),
            conditioning=conditioning,
            on_step=lambda step, x0: self.observer.step(done + step, total, x0),
            check=self.observer.check,
            references=tuple(value.to(device) for value in start.references),
            generator=start.generator,
            step_cache=self.progress.step_cache,
        )

    def _given(self, index: int, device: torch.device) -> torch.Tensor | None:
        """The latent that picture ``index`` starts from, in the model's scale."""
        latent = self.request.latent
        if latent is None:
            return None
        one = latent[index if len(latent) > 1 else 0][None].to(device).float()
        return self.wanted.model.from_comfy(one, self.job.checkpoint)

    def decode(self) -> None:
        """Decodes the rest of the latents."""
        model, latents, images = self.wanted.model, self.progress.latents, self.progress.images
        with (
            self.progress.clock.phase("decode"),
            self.engine.on_device(self.wanted, model.autoencoder.name, self.observer) as autoencoder,
        ):
            for index in range(len(images), len(latents)):
                self.observer.stage(f"decoding picture {index + 1} of {len(latents)}")
                self.observer.check()
                images.append(model.decode(autoencoder, latents[index].to(self.engine.device), self.job))


def prepare(
    engine: Engine, handle: PipelineHandle, request: SampleRequest, observer: Observer, progress: Progress
) -> tuple[Run, str]:
    """Checks a request and decides everything; loads nothing. Returns the run, and the flags cut off the prompt.

    Raises:
        AITKError: bad input, or files that do not fit.
    """
    model = engine.model(handle, observer)
    recipe = check_request(model.facts, request)
    request = settled(model.facts, request)
    # again: the latent may have set its size and its batch
    check_request(model.facts, request)
    size = size_of(model, handle, recipe, request)
    observer.stage("checking the files")
    wanted = engine.resolve(handle, recipe, size)
    typed, flags = typed_texts(request, recipe)
    job = Job(
        recipe=recipe,
        checkpoint=handle.checkpoint,
        dtype=handle.dtype,
        options=handle.options,
        quantization={name: key.quantization for name, key in wanted.keys.items()},
        size=size,
        guidance_scale=request.guidance_scale,
        typed=typed,
        references=tuple(map(Picture.of, request.control.images)) if request.control is not None else (),
    )
    schedule = model.schedule(job, schedule_length(request)).last(request.steps)
    return Run(engine, wanted, job, request, schedule, observer, progress), flags
