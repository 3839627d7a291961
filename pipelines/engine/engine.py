"""The weights behind the handles, and the cheapest way from what is loaded to what is asked for.

A part is loaded when a run first needs it, and kept as long as somebody may ask for it again and there is room: see
:mod:`.loaded`. LoRAs, strengths, prompts and seeds never reload a part. What came to the device stays there
until something else needs the room (``machine/residence.py``).
"""

from __future__ import annotations

import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..errors import DeviceMemoryError, InputError
from ..files.spans import METER
from ..layers.attention import check_attention
from ..layers.compiled import compiled
from ..layers.fill import out_of_memory
from ..layers.holding import FLOAT8_FORMS, check_holding
from ..layers.sharing import share
from ..lora.stack import LoraStack, resolve
from ..machine.ram import trim_ram
from ..machine.residence import EVERYTHING, Residence
from ..models import find_model, load_model
from ..observer import SILENT
from ..options import QUANTIZATION_INPUTS, torch_dtype
from ..weights.source import packed_as
from .counters import Counters
from .embeddings import EmbeddingKey, Embeddings
from .encoded_pictures import PictureEncodings
from .loaded import LoadedPart, LoadedParts
from .planner import Asked, Planner
from .stored_embeddings import StoredEmbeddings
from .wanted import PartKey, Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..handle import Lease, PipelineHandle
    from ..machine.machine import Machine
    from ..models.model import Denoisers, Model
    from ..models.recipe import Recipe
    from ..observer import Observer
    from ..parts.encoder import Embedding, Encoder, Text
    from ..pictures.sizes import Size
    from ..weights.checkpoint import Checkpoint

_ASK_EVERY = 0.05  # seconds between two looks at a waiting run's observer


class Engine:
    """Holds weights and brings them to the device of a machine.

    Args:
        machine: its device, and its memory.
        embeddings_folder: gives the folder of embeddings that outlive the process; None is nowhere.

    Attributes:
        counters: of its work.
        pictures: the control images that it encoded.
        stored: the embeddings in the folder.
        grace: seconds for which weights outlive the last handle on them; 0 drops them with it.
    """

    def __init__(self, machine: Machine, embeddings_folder: Callable[[], Path | None] = lambda: None) -> None:
        self.counters = Counters()
        self.grace = 10.0
        self.pictures = PictureEncodings()
        self.stored = StoredEmbeddings(embeddings_folder)
        self._machine = machine
        self._planner = Planner(machine)
        self._parts = LoadedParts(machine)
        self._embeddings = Embeddings()
        self._models: dict[str, Model] = {}
        self._checked: tuple[str, Checkpoint] | None = None
        self._turn = threading.RLock()
        self._runs = 0
        self._watched: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._left = False

    @property
    def device(self) -> str:
        return self._machine.device()

    @property
    def resident(self) -> frozenset[str]:
        """The parts that are in memory now."""
        return frozenset(key.part for key in self._parts)

    def release(self) -> None:
        """Gives everything back: weights, embeddings, and the device's memory. Handles stay valid.

        Waits for the end of a run that is going on in another thread.
        """
        with self._turn:
            self._parts.drop(self._parts)
            self._forget_encoded()
            self._checked = None
            self._tidy()

    @contextmanager
    def turn(self, observer: Observer) -> Iterator[None]:
        """Holds the engine for one run: parts, LoRAs and counters are one run's at a time, and others wait.

        Args:
            observer: of the run that waits or works; its own interruption ends its waiting, and nobody else's.
        """
        if not self._turn.acquire(blocking=False):
            observer.stage("waiting for another run to end")
            while not self._turn.acquire(timeout=_ASK_EVERY):
                observer.check()
        self._runs += 1
        try:
            with self._metered():
                yield
        finally:
            self._runs -= 1
            self._turn.release()
            if self._left:
                self._drop_left()

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Counts what is read of files in this process meanwhile."""
        before = METER.bytes
        try:
            yield
        finally:
            self.counters.bytes_read += METER.bytes - before

    def _watch(self, lease: Lease | None) -> None:
        """Has what a lease holds dropped when it ends."""
        if lease is not None and lease not in self._watched:
            self._watched.add(lease)
            weakref.finalize(lease, self._end_of_lease).atexit = False

    def _end_of_lease(self) -> None:
        # called wherever the last handle dies, maybe within a run or in another thread. A graph that was changed above
        # its loader lets go of one handle and comes with the next: it may find its weights
        if self.grace <= 0:
            self._drop_left()
            return
        timer = threading.Timer(self.grace, self._drop_left)
        timer.daemon = True
        timer.start()

    def _drop_left(self) -> None:
        """Drops the parts whose leases have all ended; while a run goes on, at its end."""
        self._left = True
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._runs:
                return
            self._left = False
            self._parts.drop(self._parts.left())
            if next(iter(self._watched), None) is None:
                self._forget_encoded()
            self._tidy()
        finally:
            self._turn.release()

    def _forget_encoded(self) -> None:
        self._embeddings.clear()
        self.pictures.clear()

    def _tidy(self) -> None:
        # modules and their hooks are circles
        gc.collect()
        trim_ram()
        self._empty_cache()

    def model(self, handle: PipelineHandle, observer: Observer = SILENT) -> Model:
        """The model's code, imported when it is first used; the observer is told of that."""
        facts = find_model(handle.model)
        known = self._models.get(facts.id)
        if known is None or known.facts is not facts:
            observer.stage(f"importing the code of {facts.title}")
            known = self._models[facts.id] = load_model(facts)
        return known

    def resolve(self, handle: PipelineHandle, recipe: Recipe, size: Size | None = None) -> Wanted:
        """What a run of a handle means by its parts; reads no weights, and gives nothing up that is loaded.

        Args:
            handle: the run's.
            recipe: the run's.
            size: of the pictures; None where there will be none.

        Raises:
            FileError: a part's files are damaged or incomplete; names the file or the tensor.
            InputError: an option cannot be had on this machine, or would do nothing.
            LoraError: a LoRA cannot be applied as asked.
        """
        model = self.model(handle)
        self._watch(handle.lease)
        _check_options(model, handle)
        asked = Asked(model, handle, recipe)
        keys = self._planner.keys(asked)
        self._check(model, handle, keys)
        # also those that this run will not touch, its texts being known
        for key in keys.values():
            if (held := self._parts.find(key)) is not None:
                held.lend_to(handle.lease)
        loras = resolve(handle.loras, recipe, {name: key.held_as for name, key in keys.items()})
        latents = None if size is None else model.latent_shape(size)
        return Wanted(model, handle, keys, loras, self._planner.plan(asked, loras, latents))

    def embeddings(self, wanted: Wanted, texts: Sequence[Text], observer: Observer) -> list[Embedding]:
        """The embeddings of texts, on the CPU; those that were not seen yet, and are not on the disk, are encoded.

        An encoder comes once for all texts, and not at all where none is left for it.

        Args:
            wanted: the run's; LoRAs of an encoder are applied before anything is encoded.
            texts: what to encode.
            observer: told of a load, asked for interruption.
        """
        device = self.device
        keys: list[EmbeddingKey] = [
            (wanted.keys[text.encoder], wanted.loras_of(text.encoder), text, device) for text in texts
        ]
        new = self._embeddings.missing(keys)
        on_disk = self.stored.find(new if wanted.handle.options.embeddings_on_disk else [], observer)
        for key, embedding in on_disk.items():
            self._embeddings.put(key, embedding)
            self.counters.texts_from_disk += 1
        new = [key for key in new if key not in on_disk]
        for name in dict.fromkeys(text.encoder for _, _, text, _ in new):
            encoder: Encoder = wanted.model.parts[name]  # pyright: ignore[reportAssignmentType]
            self.apply_loras(wanted, name, observer)
            with self.on_device(wanted, name, observer) as module:
                own = [key for key in new if key[2].encoder == name]
                for number, key in enumerate(own, 1):
                    observer.stage(f"encoding text {number} of {len(own)}")
                    observer.check()
                    embedding = encoder.encode(module, key[2], device)
                    self._embeddings.put(key, embedding)
                    self.counters.texts_encoded += 1
                    self.stored.keep(key, embedding)
        return self._embeddings.take(keys)

    @contextmanager
    def on_device(self, wanted: Wanted, part: str, observer: Observer) -> Iterator[nn.Module]:
        """Loads a part if need be, and lends it on the compute device, where it stays as long as there is room.

        Args:
            wanted: the run's.
            part: which one.
            observer: told of a load, asked for interruption.
        """
        residence = self._part(wanted, part, observer).residence
        plan = wanted.plan.part(part)
        observer.check()
        residence.most_there = plan.blocks - plan.streamed
        residence.whole = wanted.handle.options.placement == "resident"
        before = residence.moved
        if self.device != "cpu":
            observer.stage(f"bringing {part} to {self.device}")
        self._machine.admit(residence, plan.beside)
        try:
            with residence.visit() as module:
                yield module
        finally:
            if wanted.handle.options.placement == "sequential" and not residence.at_home:
                residence.leave(EVERYTHING)
            self.counters.bytes_moved += residence.moved - before

    @contextmanager
    def denoisers(self, wanted: Wanted, observer: Observer) -> Iterator[Denoisers]:
        """Lends denoisers by name, with their LoRAs on, one at a time: each stays until another one is asked for."""
        with ExitStack() as visits:
            there: dict[str, nn.Module] = {}

            def denoiser(part: str) -> nn.Module:
                if part not in there:
                    visits.close()
                    there.clear()
                    self.apply_loras(wanted, part, observer)
                    there[part] = visits.enter_context(self.on_device(wanted, part, observer))
                    if wanted.handle.options.compiled:
                        kind = wanted.model.parts[part]
                        visits.enter_context(compiled(kind.blocks(kind.lora_root(there[part]))))
                        observer.stage("sampling; the first step compiles")
                    else:
                        observer.stage("sampling")
                return there[part]

            yield denoiser

    @contextmanager
    def device_memory(self) -> Iterator[None]:
        """Hands the device's memory back after a run.

        Raises:
            DeviceMemoryError: the run needed more than there is.
        """
        device = self.device
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            where = "The CPU" if isinstance(error, MemoryError) or "CPUAllocator" in str(error) else device
            # the frames below still hold the activations
            traceback.clear_frames(error.__traceback__)
            raise DeviceMemoryError(
                f"{where} ran out of memory. Render a smaller size, set a quantization or raise blocks_on_cpu on AITK "
                "Runtime Options, or close other programs. What is loaded is kept: the next run starts from it."
            ) from error
        finally:
            self._empty_cache()

    def send_away(self, handle: PipelineHandle) -> None:
        """Frees what a run of a handle does not need, after memory ran out: the whole device, and other models here."""
        if self.device != "cpu":
            self._machine.make_room(EVERYTHING)
        own = {(handle.model, source, handle.dtype) for source in handle.checkpoint.sources}
        self._parts.drop([key for key in self._parts if (key.model, key.source, key.dtype) not in own])
        self._parts.forget_originals()
        self._tidy()

    def apply_loras(self, wanted: Wanted, part: str, observer: Observer) -> None:
        """Loads a part if need be and gives it exactly those of the run's LoRAs that are for it."""
        stack = self._part(wanted, part, observer).loras
        observer.check()
        stack.merging.room = self._parts.room_beside(wanted)
        try:
            stack.set(wanted.loras_of(part), wanted.model.facts, wanted.handle.checkpoint, observer)
        finally:
            self.counters.lora_files_read += stack.files_read
            merging = stack.merging
            self.counters.tensors_merged += merging.tensors_merged
            self.counters.tensors_restored += merging.tensors_restored
            if merging.tensors_merged or merging.tensors_restored:
                trim_ram()
            stack.files_read = merging.tensors_merged = merging.tensors_restored = 0

    def _part(self, wanted: Wanted, part: str, observer: Observer) -> LoadedPart:
        key = wanted.keys[part]
        held = self._parts.find(key) or self._load(wanted, key, observer)
        self._parts.use(key, held)
        held.lend_to(wanted.handle.lease)
        return held

    def _load(self, wanted: Wanted, key: PartKey, observer: Observer) -> LoadedPart:
        kind = wanted.model.parts[key.part]
        observer.stage(f"loading {key.part} of {key.source.name}")
        observer.check()
        self._parts.make_way(wanted, key)
        dtype = torch_dtype(key.dtype)
        module = kind.load(key.source, dtype, key.quantization, key.plain, observer)
        # what was read to make it
        trim_ram()
        self.counters.parts_loaded += 1
        root = kind.lora_root(module)
        if kind.role == "denoiser" and (processes := self._machine.processes()) > 1:
            share(root, processes, wanted.model.facts.title)
        residence = Residence(module, kind.blocks(root), self.device, lambda: self._forget(key))
        return LoadedPart(residence, LoraStack(root, key.source, dtype, residence))

    def _forget(self, key: PartKey) -> None:
        """Drops a part that was asked to leave a device that is its home."""
        if self._parts.find(key) is not None:
            self._parts.drop([key])
            self._tidy()

    def _check(self, model: Model, handle: PipelineHandle, keys: dict[str, PartKey]) -> None:
        """Refuses what cannot be run before the run starts, and before a loaded part is given up."""
        for name, key in keys.items():
            if key.quantization != "none" and packed_as(key.source):
                raise InputError(
                    f"{key.source.name!r} is quantised already, and {key.quantization} would quantise it a second "
                    f"time. Set {QUANTIZATION_INPUTS[model.parts[name].role]} to none, or choose an unquantised file."
                )
            check_holding(key.quantization, self.device, key.dtype)
        float8 = {key.held_as for key in keys.values()}.intersection(FLOAT8_FORMS)
        if self.device.startswith("mps") and float8:
            raise InputError(
                f"{', '.join(float8)} is not to be had on Apple's MPS, which has no 8-bit floating point. Choose qint8 "
                "or none on AITK Runtime Options, and files without scaled float8."
            )
        check_attention(handle.options.transformer_attention, self.device, handle.dtype)
        if self._checked != (handle.model, handle.checkpoint):
            model.check(handle.checkpoint)
            self._checked = (handle.model, handle.checkpoint)

    def _empty_cache(self) -> None:
        # torch keeps what it freed; other nodes and programs would miss it
        import torch

        backend = getattr(torch, torch.device(self.device).type, None)
        if backend is not None and hasattr(backend, "empty_cache"):
            backend.empty_cache()


def _check_options(model: Model, handle: PipelineHandle) -> None:
    """Refuses runtime options that the model does not read, or whose values it cannot."""
    declared = {option.name: option for option in model.facts.runtime_options}
    for name, value in handle.options.own.values:
        if name not in declared:
            raise InputError(
                f"{name} of AITK Runtime Options would do nothing: {model.facts.title} does not read it. Put the "
                "default back."
            )
        declared[name].check(value)
