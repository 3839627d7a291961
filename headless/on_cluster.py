"""``replay --ray``: which cluster renders a replay, and the replay on it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pipelines.errors import InputError
from .cluster.ticket import Ticket

if TYPE_CHECKING:
    from ..pipelines.handle import PipelineHandle
    from ..pipelines.jobs.job import TrainingJob
    from ..pipelines.observer import Observer
    from ..pipelines.replay.judge import Judged
    from ..pipelines.replay.store import CellStore


@dataclass(frozen=True)
class Cluster:
    """The cluster that renders.

    Attributes:
        address: Ray's, or ``auto``.
        workers: how many; None is as many as it has GPUs, or else machines.
        ticket: what the workers open.
    """

    address: str
    workers: int | None
    ticket: Ticket

    def replay(
        self,
        job: TrainingJob,
        pipeline: PipelineHandle,
        device: str,
        store: CellStore,
        observer: Observer,
        *,
        measure_floor: bool,
    ) -> Iterator[Judged]:
        """Renders a job's cells on workers, which are gone when it returns; the cells are compared one at a time.

        Args:
            job, pipeline: as they are here, with which the workers' have to agree.
            device: of this process.
            store: of this machine.
            observer: told of progress, asked for interruption.
            measure_floor: see :func:`..pipelines.replay.replay.replay`.

        Raises:
            InputError: no cluster answers, or no worker of it may render.
            Exception: whatever the observer raises to interrupt; finished cells are kept in the store.
        """
        from .cluster.connection import connected
        from .cluster.crew import Crew
        from .cluster.fan_out import replay_on
        from .cluster.passport import Passport

        own = Passport.of_this_process(job, pipeline, device)
        with (
            connected(self.address) as ray,
            closing(Crew(ray, self.ticket, own, self.workers, observer)) as crew,
        ):
            return replay_on(crew, job, pipeline, store, measure_floor=measure_floor)


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options on the cluster."""
    parser.add_argument("--ray", metavar="ADDRESS", help="render on the workers of a Ray cluster that runs, e.g. auto")
    parser.add_argument(
        "--ray-workers", type=int, metavar="N", help="how many (default: one for each GPU, or else for each machine)"
    )


def chosen_cluster(arguments: argparse.Namespace) -> Cluster | None:
    """The cluster that the options name; None without ``--ray``.

    Raises:
        InputError: they do not go together.
    """
    if arguments.ray is None:
        if arguments.ray_workers is not None:
            raise InputError("--ray-workers needs --ray, the address of the cluster.")
        return None
    if arguments.ray_workers is not None and arguments.ray_workers < 1:
        raise InputError(f"--ray-workers is {arguments.ray_workers}: it must be 1 or more.")
    if (arguments.device or "").startswith("cuda:"):
        raise InputError("Ray gives each worker a GPU of its own: leave the number of --device out.")
    ticket = Ticket(
        str(arguments.job.resolve()), str(arguments.models.resolve()), arguments.weights, arguments.checkpoints,
        arguments.samples, arguments.strengths, arguments.device,
    )  # fmt: skip
    return Cluster(arguments.ray, arguments.ray_workers, ticket)
