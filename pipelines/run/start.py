"""Where each picture of a batch begins: its seed's generator, and what it makes of the control images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.wanted import Wanted
    from ..models.model import Job
    from ..observer import Observer


@dataclass(frozen=True, eq=False)
class Start:
    """One picture's.

    Attributes:
        generator: draws its noise next.
        references: what the loop gets of the control images, on the CPU.
    """

    generator: torch.Generator
    references: tuple[torch.Tensor, ...] = ()


def seeded(device: str, seed: int) -> torch.Generator:
    """A generator of a device, at its start."""
    import torch

    return torch.Generator(device).manual_seed(seed)


def noise_device(job: Job, device: str) -> str:
    """Where the recipe draws noise."""
    return "cpu" if job.recipe.noise == "cpu" else device


def starts(engine: Engine, wanted: Wanted, job: Job, seeds: range, observer: Observer) -> list[Start]:
    """The start of each picture. References are encoded before noise is drawn, as the trainer does."""
    device = engine.device
    drawn_on = noise_device(job, device)
    found = [Start(seeded(drawn_on, seed)) for seed in seeds]
    if not job.references:
        return found
    with engine.on_device(wanted, wanted.model.autoencoder.name, observer) as autoencoder:
        observer.stage("encoding the control images")
        for index, (seed, start) in enumerate(zip(seeds, found, strict=True)):
            observer.check()
            if job.recipe.posterior == "mean" and index > 0:
                # nothing is drawn: all pictures have the same
                found[index] = Start(start.generator, found[0].references)
                continue
            shared = job.recipe.posterior == "trainer" and device == drawn_on
            generator = start.generator if shared else seeded(device, seed)
            references = wanted.model.encode_references(autoencoder, job, generator, device)
            found[index] = Start(start.generator, tuple(value.cpu() for value in references))
    return found
