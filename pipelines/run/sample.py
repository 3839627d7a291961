"""The sampler node's work: from a handle and a request to pictures and a report. Model-independent.

The order is fixed: check the request, encode, apply LoRAs, denoise each picture of the batch alone, decode, report.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import DeviceMemoryError
from ..layers.step_cache import StepCache
from .report import Report, Sources, peak_memory
from .run import Progress, prepare
from .start import starts
from .texts import storing_notes, text_notes

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..handle import PipelineHandle
    from ..observer import Observer
    from ..pictures.sizes import Size
    from .request import SampleRequest
    from .run import Run


_RETRIED = "memory ran out: what this run does not need was sent away, and the run went on from there"
_COMPILED = "compile is on: compiled code rounds elsewhere than AI Toolkit, and the picture is another one"


@dataclass(frozen=True, eq=False)
class SampleResult:
    """What the sampler node hands on.

    Attributes:
        images: [B, H, W, 3], float32; every value is a whole number of 255ths, so that saving gives the exact pixels.
        latent: [B, C, h, w], or with frames [B, C, frames, h, w], float32, in ComfyUI's scale.
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


def sample(engine: Engine, handle: PipelineHandle, request: SampleRequest, observer: Observer) -> SampleResult:
    """Runs a request. Whatever it raises, the engine stays usable and its weights are as they should be.

    Any thread may call it: runs take turns. Where memory runs out, what the run does not need is sent away, and it is
    tried once more, from where it was: no text is encoded, and no picture denoised or decoded, a second time.

    Raises:
        AITKError: bad input, files that do not fit, out of memory; or whatever the observer raises to interrupt.
    """
    with engine.turn(observer):
        progress = Progress(replace(engine.counters), step_cache=StepCache(handle.options.step_caching))
        try:
            return _sample(engine, handle, request, observer, progress)
        except DeviceMemoryError:
            observer.stage("out of memory: once more, with everything else sent away")
        # the error is gone, and with it what it held
        engine.send_away(handle)
        progress.retried = True
        return _sample(engine, handle, request, observer, progress)


def _sample(
    engine: Engine, handle: PipelineHandle, request: SampleRequest, observer: Observer, progress: Progress
) -> SampleResult:
    import torch

    run, flags = prepare(engine, handle, request, observer, progress)
    job, wanted, model, clock = run.job, run.wanted, run.wanted.model, progress.clock
    texts = model.texts(job)
    model.check_references(job)
    # ComfyUI runs nodes in inference mode, whose tensors are of no use outside of it; here every host is alike
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        peak_memory(engine.device) as peak,
        engine.device_memory(),
    ):
        with clock.phase("encode"):
            conditioning = engine.embeddings(wanted, texts, observer)
        with clock.phase("encode control") if job.references else nullcontext():
            begun = starts(engine, wanted, job, run.seeds, observer)
        with clock.phase("prepare"):
            if not run.is_denoised:
                engine.apply_loras(wanted, model.facts.files.of_role("denoiser")[0], observer)
            observer.stage("noting which files these are")
            # read now: the files may be gone when the picture is done
            sources = Sources.of(wanted, engine.stored.digests)
        if not run.is_denoised:
            run.denoise(conditioning, begun)
        run.decode()
    control = request.control.notes if request.control is not None else ()
    retried = (_RETRIED,) if progress.retried else ()
    said = (*text_notes(model.facts, job.typed, flags, conditioning), *storing_notes(engine.stored.take_trouble()))
    notes = (*_other_picture(run), *retried, *job.size.notes, *control, *wanted.plan.notes, *said)
    report = Report(run, sources, texts, notes, peak).as_json()
    comfy = torch.cat([model.to_comfy(latent.float(), handle.checkpoint) for latent in progress.latents])
    return SampleResult(to_images(progress.images), comfy, run.schedule.sigmas, job.size, report, notes)


def _other_picture(run: Run) -> list[str]:
    """Notes on options that make the picture another one than the trainer's."""
    cache, notes = run.progress.step_cache, []
    if run.job.options.compiled:
        notes.append(_COMPILED)
    if cache.threshold:
        changed = ", and the picture is another one than AI Toolkit's" if cache.reused else ": nothing is changed"
        notes.append(
            f"step_caching is on at {cache.threshold:g}: {cache.reused} of {cache.block_calls} block calls were taken "
            f"from an earlier step{changed}"
        )
    return notes


def to_images(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [H, W, 3] each -> IMAGE [B, H, W, 3], float32, 0..1: whole 255ths, which saving gives back exactly."""
    import torch

    return torch.stack(list(pictures)).to(torch.float32) / 255
