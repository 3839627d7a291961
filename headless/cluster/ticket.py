"""What a worker is told of the replay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ticket:
    """Plain values, for a worker has no pack yet that could hold others.

    Attributes:
        job, models: folders, the same on every machine.
        weights, checkpoints, samples, strengths: as the command has them.
        device: None is the best there is.
    """

    job: str
    models: str
    weights: str
    checkpoints: str
    samples: str
    strengths: str
    device: str | None
