"""Every cell of a selection, asked of the engine: what was drawn before is in the store, a failure is one cell's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compare.pixels import decoded, encoded
from ..errors import AITKError, OracleError
from ..jobs.merges import merges_before
from ..replay.cell import Place
from ..words import cut, printable, shown
from .connection import Gone
from .drawing import Drawing, draw
from .limits import Circumstances, Limit, limits_of
from .protocol import ASSETS, ENTRY_KEYS, HEALTH, MODELS, QUANTISATION, STATES, Misunderstanding
from .request import Asked, ask_for, content_of

if TYPE_CHECKING:
    from ..jobs.job import TrainingJob
    from ..observer import Observer
    from ..replay.control import ControlFolders
    from ..replay.selection import Selection
    from ..replay.store import CellStore
    from .connection import Connection

_KIND = "AI Toolkit's engine"
_RESOLVED = (*QUANTISATION, "dtype", "name_or_path")
_SHOWN = 8  # names in a message


@dataclass(frozen=True, eq=False)
class Witness:
    """What came of asking the engine for a cell.

    Attributes:
        place: the cell's.
        picture: a PNG file; None where there is an error.
        error: why there is no picture; empty where there is one.
        record: what was sent and what was said, JSON-able, without paths of this machine.
        limits: why the picture may not be the trainer's.
        found: whether it was in the store already.
    """

    place: Place
    picture: Path | None = None
    error: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    found: bool = False


def consult(
    job: TrainingJob,
    selection: Selection,
    recipes: Mapping[int, Sequence[str]],
    folders: ControlFolders,
    engine: Connection,
    store: CellStore,
    observer: Observer,
    seconds: float,
) -> dict[Place, Witness]:
    """Asks the engine for each cell of a selection.

    Args:
        job, selection: whose cells.
        recipes: step -> those that the trainer may have used; empty where nobody knows the model.
        folders: where control images may lie.
        engine: which.
        store: of finished pictures; each is kept there as soon as it is drawn.
        observer: told of each cell, asked for interruption.
        seconds: without a sign of life before a picture is given up.

    Raises:
        Exception: whatever the observer raises to interrupt, after the engine was told to stop.
    """
    observer.stage("asking AI Toolkit's engine what it knows")
    questions = _Questions(job, recipes, engine, store, observer, seconds)
    questions.meet()
    found = {}
    for checkpoint in selection.checkpoints:
        for strength in selection.strengths:
            for sample in selection.samples:
                place = Place(checkpoint.step, sample.index, strength)
                observer.check()
                try:
                    asked = ask_for(job, checkpoint, sample, strength, folders)
                    found[place] = questions.witness(place, asked)
                except AITKError as error:
                    found[place] = Witness(place, error=str(error))
    return found


class _Questions:
    """One engine, and why it is asked no more once it is not."""

    def __init__(
        self,
        job: TrainingJob,
        recipes: Mapping[int, Sequence[str]],
        engine: Connection,
        store: CellStore,
        observer: Observer,
        seconds: float,
    ) -> None:
        self._job = job
        self._recipes = recipes
        self._engine = engine
        self._store = store
        self._observer = observer
        self._seconds = seconds
        self._entry = ""  # its digest; empty while nothing answers
        self._closed = ""
        self._strange: list[str] = []
        self._device = ""
        self._assets: dict[Path, str] = {}

    def meet(self) -> None:
        """Asks who is there, and whether it knows the job's model; why not is every cell's error then."""
        try:
            # before the token: it is for an engine alone
            health = self._engine.get_object(HEALTH, with_token=False)
            if "ok" not in health:
                raise Misunderstanding(
                    "What runs there answers, but not as AI Toolkit's engine does. Check the address."
                )
            device = health.get("device")
            self._device = printable(cut(device)) if isinstance(device, str) else ""
            entry = self._own_entry(self._engine.get_object(MODELS))
            self._entry = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        except OracleError as error:
            self._closed = str(error)

    def witness(self, place: Place, asked: Asked) -> Witness:
        """A cell's picture, from the store or from the engine.

        Raises:
            AITKError: there is none.
        """
        key = asked.key()
        record = self._store.find(key)
        # the registry fills the gaps of a request: with another one it is another question
        known = record is not None and (not self._entry or record.get("entry") == self._entry)
        if record is None or not known:
            if self._closed:
                raise OracleError(self._closed)
            self._observer.stage(f"the engine draws {place}")
            record = self._drawn(place, asked, key)
        circumstances = Circumstances(
            sent=record["model"],
            lora=asked.lora is not None,
            merged_before=bool(merges_before(self._job, place.step, place.index)),
            dtype=self._job.model.dtype,
            recipes=self._recipes.get(place.step, ()),
            loaded=record["resolved"],
            mode=record["lora_mode"],
        )
        return Witness(place, self._store.picture(key), "", record, limits_of(circumstances), known)

    def _drawn(self, place: Place, asked: Asked, key: str) -> Mapping[str, Any]:
        try:
            body = asked.body([self._asset(path) for path in asked.control_images])
            drawing = draw(self._engine, body, self._observer, str(place), self._seconds)
        except Gone as error:
            self._closed = f"Not asked, after this at {place}: {error}"
            raise
        _check(drawing, asked)
        # a copy without whatever else the engine writes into its files
        picture = encoded(decoded("The engine's picture", drawing.picture).pixels, "png")
        return self._store.keep(key, picture, self._record(asked, drawing, key))

    def _asset(self, path: Path) -> str:
        """How the engine names a control image, which it gets once."""
        if path not in self._assets:
            content = content_of(path)
            name = f"{hashlib.sha256(content).hexdigest()[:16]}{path.suffix.lower()}"
            answer = self._engine.upload(ASSETS, name, content)
            if not isinstance(answer.get("path"), str):
                raise Misunderstanding("The engine does not say where it put a control image.")
            self._assets[path] = answer["path"]
        return self._assets[path]

    def _own_entry(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        entries = answer.get("archs")
        known = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
        by_arch = {one["arch"]: one for one in known if isinstance(one.get("arch"), str)}
        if not by_arch:
            raise Misunderstanding(f"The engine lists no architectures in the way of {STATES}, which is all we know.")
        arch = self._job.model.arch
        entry = by_arch.get(arch) or by_arch.get(arch.partition(":")[0])
        if entry is None:
            names = ", ".join(printable(cut(one, 40)) for one in sorted(by_arch)[:_SHOWN])
            raise OracleError(
                f"The engine does not know the job's architecture {shown(arch)}. It has {len(by_arch)}: {names}, ..."
            )
        if entry.get("modality", "image") != "image":
            raise OracleError(f"The engine draws no pictures with {shown(arch)}: {shown(entry['modality'])}.")
        strange = sorted(set(entry) - ENTRY_KEYS)
        if strange:
            names = ", ".join(shown(printable(one)) for one in strange[:_SHOWN])
            self._strange.append(f"The engine tells of the architecture what {STATES} do not: {names}.")
        return entry

    def _record(self, asked: Asked, drawing: Drawing, key: str) -> dict[str, Any]:
        start, result = drawing.start, drawing.result
        loaded, mode = start.get("model"), start.get("lora_mode")
        strange = [*self._strange, *drawing.strange]
        if not isinstance(loaded, dict):
            strange.append("The engine does not say which model it resolved, so that its quantisation is not checked.")
        return {
            "kind": _KIND,
            "key": key,
            "model": dict(asked.model),
            "sample": dict(asked.sample),
            "lora": asked.lora and {"name": asked.lora.path.name, "strength": asked.strength},
            "control_images": [path.name for path in asked.control_images],
            "entry": self._entry,
            "resolved": _plain(loaded, _RESOLVED),
            "lora_mode": printable(cut(mode)) if isinstance(mode, str) else "",
            "result": _plain(result, ("seed", "width", "height", "seconds", "steps")),
            "device": self._device,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "not_understood": strange,
        }


def _check(drawing: Drawing, asked: Asked) -> None:
    """Raises where the engine says itself that it drew something else than it was asked for."""
    loras, seed = drawing.start.get("loras"), drawing.result.get("seed")
    if asked.lora is not None and not (isinstance(loras, list) and loras):
        raise Misunderstanding(
            "The engine does not say that it applied the LoRA, as later ones of the states that we know do: it may "
            "have drawn the base, so that its picture is not used. Update AI Toolkit."
        )
    if asked.lora is None and loras:
        raise Misunderstanding("The engine says that it applied a LoRA, and none was sent: its picture is not used.")
    if isinstance(seed, int) and seed != asked.sample["seed"]:
        raise Misunderstanding(f"The engine drew seed {shown(seed)}, and {asked.sample['seed']} was sent.")


def _plain(value: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Of an object of the engine's what we look at: numbers, switches and short texts."""
    there = {key: value[key] for key in keys if key in value} if isinstance(value, Mapping) else {}
    return {
        key: printable(cut(one)) if isinstance(one, str) else one
        for key, one in there.items()
        if one is None or isinstance(one, bool | int | str) or (isinstance(one, float) and math.isfinite(one))
    }
