"""Where each picture of a batch begins: its seed's generator, and what it makes of the control images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine.encoded_pictures import EncodedPictures, PicturesKey

if TYPE_CHECKING:
    import torch
    from torch import nn

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
    """The start of each picture. References are encoded before noise is drawn, as the trainer does.

    What was encoded before is taken from the engine, and a generator that drew for it is set to where it stood then.
    """
    found = [Start(seeded(noise_device(job, engine.device), seed)) for seed in seeds]
    if not job.references:
        return found
    keys = [_key(engine, wanted, job, seed) for seed in seeds]
    known = {key: encoded for key in keys if (encoded := engine.pictures.find(key)) is not None}
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    if missing:
        with engine.on_device(wanted, wanted.model.autoencoder.name, observer) as autoencoder:
            observer.stage("encoding the control images")
            for key in missing:
                observer.check()
                known[key] = _encode(engine, wanted, job, key, autoencoder)
                engine.pictures.put(key, known[key])
    return [_after(start, job, engine.device, known[key]) for start, key in zip(found, keys, strict=True)]


def _key(engine: Engine, wanted: Wanted, job: Job, seed: int) -> PicturesKey:
    part = wanted.model.autoencoder.name
    return PicturesKey(
        wanted.keys[part],
        wanted.loras_of(part),
        job.references,
        wanted.model.reference_settings(job),
        engine.device,
        # all pictures have the same where nothing is drawn
        None if job.recipe.posterior == "mean" else seed,
    )


def _encode(engine: Engine, wanted: Wanted, job: Job, key: PicturesKey, autoencoder: nn.Module) -> EncodedPictures:
    generator = seeded(key.device, key.seed or 0)
    before = generator.get_state()
    references = wanted.model.encode_references(autoencoder, job, generator, key.device)
    engine.counters.pictures_encoded += len(job.references)
    state = generator.get_state()
    assert key.seed is not None or bool((state == before).all()), "what draws is no other seed's"
    return EncodedPictures(tuple(value.cpu() for value in references), None if key.seed is None else state)


def _after(start: Start, job: Job, device: str, encoded: EncodedPictures) -> Start:
    """A start with its references: where one generator draws for both, it stands behind what was drawn for them."""
    if job.recipe.posterior == "trainer" and device == noise_device(job, device) and encoded.state is not None:
        start.generator.set_state(encoded.state)
    return Start(start.generator, encoded.references)
