"""Workers on a Ray cluster, and the cells that they render."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.errors import FileError, InputError
from ...pipelines.replay.key import KERNEL_VARIABLES
from ...pipelines.replay.ledger import Ledger
from ...pipelines.replay.progress import TimeLeft
from ...pipelines.words import cut
from .cell_queue import CellQueue
from .passport import USUAL
from .station import station

if TYPE_CHECKING:
    from ...pipelines.observer import Observer
    from ...pipelines.replay.cell import Outcome, Place
    from ...pipelines.replay.store import CellStore
    from .passport import Passport
    from .ticket import Ticket
    from .worker import Begun, Planned, Rendered

_ROOT = Path(__file__).resolve().parents[2]
_TRIES = 3  # of a cell whose worker dies
_ASK_EVERY = 1.0  # seconds
_SHOWN = 4  # workers in a line of progress


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it.

    Attributes:
        number: from 1.
        actor: Ray's.
        node, pid: its machine's name and its process there, once it has arrived.
        ready: whether it may be given cells of this round.
        cell: the key of the one that it renders; empty where it has none.
        group: of its last cell.
    """

    number: int
    actor: Any
    node: str = ""
    pid: int = 0
    ready: bool = False
    cell: str = ""
    group: object = None

    def __str__(self) -> str:
        where = f" (process {self.pid} on {self.node})" if self.node else ""
        return f"worker {self.number}{where}"


@dataclass(eq=False)
class _Round:
    """Cells that are rendered now.

    Attributes:
        ledger: where their pictures go.
        queue: what nobody renders yet.
        places: of all, by key.
        steps: of all, by key.
        kernels: with which they are rendered, by name.
        left: how long it will take.
        tries: workers that died with a cell.
        encoder: the worker that encodes the texts of all; None before there is one, and after it died.
        encoded: Ray's reference to what it encoded, which the other workers wait for.
    """

    ledger: Ledger
    queue: CellQueue
    places: dict[str, Place]
    steps: dict[str, int]
    kernels: str
    left: TimeLeft
    tries: Counter[str]
    encoder: _Worker | None = None
    encoded: Any = None

    @property
    def settled(self) -> list[str]:
        return [key for key in self.places if self.ledger.is_settled(key)]


class Crew:
    """Workers that come and go while cells are rendered.

    Args:
        ray: connected, see :func:`.connection.connected`.
        ticket: what the workers open.
        own: what they have to agree with.
        workers: how many; None is one for each GPU, or, where the cluster has none, one for each machine.
        observer: told of progress, asked for interruption.

    Raises:
        InputError: there can be no such workers.
    """

    def __init__(self, ray: Any, ticket: Ticket, own: Passport, workers: int | None, observer: Observer) -> None:
        self._ray = ray
        self._ticket = asdict(ticket)
        self._own = own
        self._observer = observer
        self._first: Passport | None = None
        self._workers: list[_Worker] = []
        self._started = 0
        self._gone: list[str] = []
        self._pending: dict[Any, tuple[_Worker, Callable[[_Worker, Any], None]]] = {}
        self._round: _Round | None = None
        self._asked = 0.0
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self._gpu = (ticket.device or "").startswith("cuda") or (ticket.device is None and gpus > 0)
        count = workers or (gpus if self._gpu else sum(1 for node in ray.nodes() if node["Alive"]))
        if not count:
            raise InputError(
                "The cluster has no GPU now, and --device is cuda. Give --ray-workers, or another --device."
            )
        for _ in range(count):
            self._start()

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        self._round = None
        for worker in list(self._workers):
            self._end(worker)

    @property
    def other_kernels(self) -> tuple[str, ...]:
        """Those that the workers can render with, in the order of trying; none before something was rendered."""
        return self._first.others if self._first is not None else ()

    def render(self, store: CellStore, places: Sequence[Place] | None, kernels: str = USUAL) -> list[Outcome]:
        """Renders what of some cells is not in a store yet; each is kept there as soon as it comes.

        Args:
            store: of this machine.
            places: which; None is the whole grid.
            kernels: the name of those with which; by default those in force.

        Raises:
            InputError: there is no worker left.
            FileError: the store cannot be written.
        """
        self._observer.stage("looking at what is rendered already")
        ledger = Ledger(store)
        for one in self._plan(places, kernels):
            if one.error:
                ledger.refuse(one.place, one.error)
            else:
                ledger.add(one.place, one.key, one.steps)
        if waiting := ledger.waiting:
            at = {key: one.place for key, one in waiting.items()}
            steps = {key: one.steps for key, one in waiting.items()}
            queue = CellQueue({key: (place.step, place.strength) for key, place in at.items()})
            left = TimeLeft(sum(steps.values()))
            self._render(_Round(ledger, queue, at, steps, kernels, left, Counter()))
        return ledger.outcomes()

    def _plan(self, places: Sequence[Place] | None, kernels: str) -> list[Planned]:
        plans: list[list[Planned]] = []
        asked: _Worker | None = None
        while not plans:
            there = [worker for worker in self._workers if worker.node]
            if there and asked not in there:
                asked = there[0]
                self._call(asked, lambda _, plan: plans.append(plan), "plan", places, kernels)
            self._wait("starting the workers")
        return plans[0]

    def _render(self, own: _Round) -> None:
        self._round = own
        for worker in self._workers:
            worker.group = None
            if worker.node:
                self._begin(worker)
        while len(own.queue) or any(worker.cell for worker in self._workers):
            for worker in self._workers:
                if worker.ready and not worker.cell:
                    self._give(worker, own)
            self._wait("")
        self._round = None
        for worker in self._workers:
            worker.ready = False

    def _give(self, worker: _Worker, own: _Round) -> None:
        """Gives a worker its next cell, if there is one."""
        others = {other.group for other in self._workers if other is not worker and other.cell}
        key = own.queue.take(worker.group, others)
        if key is not None:
            own.left.begin()
            place = own.places[key]
            worker.cell, worker.group = key, (place.step, place.strength)
            self._call(worker, self._rendered, "render", place, own.kernels)

    def _begin(self, worker: _Worker) -> None:
        own = self._round
        assert own is not None
        if own.encoder is None:
            own.encoder = worker
        elif own.encoded is None:
            # its turn comes with the texts
            return
        # all of them, whatever is rendered: the texts of all were encoded
        self._call(
            worker,
            lambda worker, begun: self._begun(own, worker, begun),
            "begin", own.places, own.kernels, own.encoded,
        )  # fmt: skip

    def _begin_others(self, worker: _Worker) -> None:
        for other in self._workers:
            if other is not worker and other.node:
                self._begin(other)

    # what comes back

    def _arrived(self, worker: _Worker, answer: Mapping[str, Any]) -> None:
        worker.node, worker.pid = answer["node"], answer["pid"]
        problem = answer.get("problem")
        if not problem:
            passport: Passport = answer["passport"]
            problem = "; ".join(passport.unlike(self._own))
            if not problem:
                self._first = self._first or passport
                problem = "; ".join(passport.unlike_kernels(self._first))
        if problem:
            self._refuse(worker, problem)
        elif self._round is not None:
            self._begin(worker)

    def _begun(self, own: _Round, worker: _Worker, begun: Begun) -> None:
        if begun.unlike:
            self._refuse(worker, f"its files of {begun.unlike[0]} are others than those of the first worker")
        elif own is self._round:
            # else the last cell came while this worker began
            for key, error in begun.failed.items():
                own.queue.drop(key)
                own.ledger.fail(key, error)
            worker.ready = True
            if own.encoder is worker:
                own.encoded = self._ray.put(begun.encoded)
                self._begin_others(worker)

    def _rendered(self, worker: _Worker, rendered: Rendered) -> None:
        own, key, worker.cell = self._round, worker.cell, ""
        assert own is not None
        if rendered.report is None:
            own.ledger.fail(key, rendered.error)
        else:
            try:
                own.ledger.keep(key, rendered.picture, rendered.report)
            except FileError as error:
                own.ledger.fail(key, str(error))
        self._observer.stage(self._far(own, f"{own.places[key]} from {worker}"))

    def _died(self, worker: _Worker, error: Exception) -> None:
        """A worker that dies loses its cell, which another one tries; a worker takes its place."""
        self._end(worker)
        self._gone.append(f"{worker} died: {_words(error)}")
        self._observer.stage(self._gone[-1])
        own, key = self._round, worker.cell
        if own is not None and key:
            own.tries[key] += 1
            if own.tries[key] < _TRIES:
                own.queue.give_back(key)
            else:
                own.ledger.fail(key, f"{_TRIES} workers died with it; the last one, {self._gone[-1]}")
            self._start()

    def _refuse(self, worker: _Worker, problem: str) -> None:
        self._end(worker)
        self._gone.append(f"{worker} is refused: {problem}")
        self._observer.stage(self._gone[-1])

    # Ray

    def _start(self) -> None:
        self._started += 1
        options = {"num_gpus": 1, "num_cpus": 0} if self._gpu else {"num_gpus": 0, "num_cpus": 1}
        # one thread renders, another one says how far it is
        kind = self._ray.remote(station()).options(
            **options, max_concurrency=2, max_restarts=0, scheduling_strategy="SPREAD"
        )
        worker = _Worker(self._started, kind.remote())
        self._workers.append(worker)
        ref = worker.actor.arrive.remote(str(_ROOT), _environment(), self._ticket)
        self._pending[ref] = (worker, self._arrived)

    def _call(self, worker: _Worker, then: Callable[[_Worker, Any], None], method: str, *arguments: Any) -> None:
        self._pending[worker.actor.call.remote(method, *arguments)] = (worker, then)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._pending = {ref: one for ref, one in self._pending.items() if one[0] is not worker}
        self._ray.kill(worker.actor)
        own = self._round
        if own is not None and own.encoder is worker and own.encoded is None:
            own.encoder = None
            self._begin_others(worker)

    def _wait(self, text: str) -> None:
        """Waits a moment for whatever comes back, and takes it."""
        if not self._workers:
            raise InputError(f"No worker of the cluster is left. {'. '.join(dict.fromkeys(self._gone))}.")
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_ASK_EVERY)
        self._observer.check()
        for ref in ready:
            worker, then = self._pending.pop(ref)
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                self._died(worker, error)
            else:
                then(worker, answer)
        if time.monotonic() - self._asked >= _ASK_EVERY:
            self._asked = time.monotonic()
            self._say(text)

    def _say(self, text: str) -> None:
        """Tells how far the workers are."""
        asked = {worker.actor.now.remote(): worker for worker in self._workers if worker.node}
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_EVERY) if asked else ([], [])
        own, said, steps = self._round, [], 0
        for ref in ready:
            # that it died, its cell says
            with suppress(self._ray.exceptions.RayError):
                doing, done = self._ray.get(ref)
                worker, where = asked[ref], ""
                if own is not None and worker.cell:
                    steps += done
                    where = f" at {own.places[worker.cell]}"
                said += [f"{worker}{where}: {doing}"] if doing else []
        come = f"{len(asked)} of {len(self._workers)} workers are there"
        words = "; ".join([text or come, *said[:_SHOWN]])
        self._observer.progress(words if own is None else self._far(own, words, steps))

    def _far(self, own: _Round, text: str, within: int = 0) -> str:
        settled = own.settled
        done = sum(own.steps[key] for key in settled) + within
        again = f" once more, {own.kernels}" if own.kernels else ""
        return own.left.after(f"{len(settled)} of {len(own.places)} cells{again}: {text}", done)


def _environment() -> dict[str, str]:
    """What chooses kernels: a worker on the CPU takes as many threads as this process would."""
    import torch

    found = {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ}
    return found | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def _words(error: Exception) -> str:
    """The first line of an error of Ray's that says something, or the last of one that a worker raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = getattr(error, "cause", None)
    said = f"{type(cause).__name__}: {cause}" if cause is not None else (lines or [type(error).__name__])[0]
    return cut(said, 300)
