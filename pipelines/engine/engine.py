"""The weights behind the handles, and the cheapest way from what is loaded to what is asked for.

A part is loaded when a run first needs it, and kept as long as somebody may ask for it again and there is room: see
:mod:`.loaded` and :mod:`.leases`. LoRAs, strengths, prompts and seeds never reload a part. What came to the device
stays there until something else needs the room (``machine/residence.py``).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..errors import DeviceMemoryError, InputError
from ..files.spans import METER
from ..layers.attention import check_attention
from ..layers.compiled import compiled
from ..layers.fill import out_of_memory
from ..layers.holding import FLOAT8_FORMS, check_holding
from ..layers.sharing import check_shared, share
from ..layers.step_cache import check_step_caching
from ..lora.stack import LoraStack, resolve
from ..machine.ram import trim_ram
from ..machine.residence import EVERYTHING, Residence
from ..models import find_model, load_model
from ..observer import SILENT
from ..options import QUANTIZATION_INPUTS, torch_dtype
from ..weights.source import packed_as
from .counters import Counters
from .embeddings import MOST, EmbeddingKey, Embeddings
from .encoded_pictures import PictureEncodings
from .leases import Leases
from .loaded import LoadedPart, LoadedParts
from .planner import Asked, Planner
from .stored_embeddings import StoredEmbeddings
from .turn import Turn
from .wanted import PartKey, Wanted

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..handle import PipelineHandle
    from ..layers.step_cache import StepCache
    from ..lora.stack import AppliedLora
    from ..machine.machine import Machine
    from ..models.model import Denoisers, Model
    from ..models.recipe import Recipe
    from ..observer import Observer
    from ..parts.encoder import Embedding, Encoder, Text
    from ..pictures.sizes import Size
    from ..weights.checkpoint import Checkpoint


class Engine:
    """Holds weights and brings them to the device of a machine.

    Args:
        machine: its device, and its memory.
        embeddings_folder: gives the folder of embeddings that outlive the process; None is nowhere.

    Attributes:
        counters: of its work.
        leases: of the handles that it was given; what none of them holds any more is dropped.
        pictures: the control images that it encoded.
        stored: the embeddings in the folder.
    """

    def __init__(self, machine: Machine, embeddings_folder: Callable[[], Path | None] = lambda: None) -> None:
        self.counters = Counters()
        self.leases = Leases(self._drop_left)
        self.pictures = PictureEncodings()
        self.stored = StoredEmbeddings(embeddings_folder)
        self._machine = machine
        self._planner = Planner(machine)
        self._parts = LoadedParts(machine)
        self._embeddings = Embeddings()
        self._models: dict[str, Model] = {}
        self._checked: tuple[str, Checkpoint] | None = None
        self._turn = Turn()

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
        with self._turn.taken():
            self._parts.drop(self._parts)
            self._parts.sweep()
            self._forget_encoded()
            self._checked = None
            self._give_back()

    @contextmanager
    def turn(self, observer: Observer) -> Iterator[None]:
        """Holds the engine for one run: parts, LoRAs and counters are one run's at a time, and others wait.

        Args:
            observer: of the run that waits or works; its own interruption ends its waiting, and nobody else's.
        """
        with self._turn.taken(observer):
            self._parts.sweep()
            try:
                yield
            finally:
                self.stored.finish()

    def _drop_left(self) -> None:
        """Drops the parts whose leases have all ended; waits for the end of a run that is going on."""
        with self._turn.taken():
            self._parts.drop(self._parts.left())
            if not self.leases.any_lives:
                self._forget_encoded()
            self._give_back()

    def _forget_encoded(self) -> None:
        self._embeddings.clear()
        self.pictures.clear()

    def _give_back(self) -> None:
        """Hands memory that was freed back to the system and to the device."""
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
        if handle.lease is not None:
            self.leases.watch(handle.lease)
        _check_options(model, handle)
        asked = Asked(model, handle, recipe)
        keys = self._planner.keys(asked)
        self._check(model, handle, keys)
        # also those that this run will not touch, its texts being known
        for key in keys.values():
            if (held := self._parts.find(key)) is not None:
                held.lend_to(handle.lease)
        loras = resolve(handle.loras, recipe, {name: asked.held(key) for name, key in keys.items()})
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
        keys = self._embedding_keys(wanted, texts)
        new = self._embeddings.missing(keys)
        with self._metered():
            on_disk = self.stored.find(new if wanted.handle.options.embeddings_on_disk else [])
        for key, embedding in on_disk.items():
            self._embeddings.put(key, embedding)
            self.counters.texts_from_disk += 1
        new = [key for key in new if key not in on_disk]
        for name in dict.fromkeys(text.encoder for _, _, text, _ in new):
            self._encode(wanted, name, [key for key in new if key[2].encoder == name], observer)
        return self._embeddings.take(keys)

    def take_embeddings(self, wanted: Wanted, texts: Sequence[Text], embeddings: Sequence[Embedding]) -> None:
        """Takes embeddings that an engine elsewhere made of the same files, with the same kernels; on the CPU."""
        for key, embedding in zip(self._embedding_keys(wanted, texts), embeddings, strict=True):
            self._embeddings.put(key, embedding)

    def _embedding_keys(self, wanted: Wanted, texts: Sequence[Text]) -> list[EmbeddingKey]:
        device = self.device
        return [(wanted.keys[text.encoder], wanted.loras_of(text.encoder), text, device) for text in texts]

    @contextmanager
    def keeping_texts(self, count: int) -> Iterator[None]:
        """Keeps at least so many embeddings meanwhile: those of runs that are still to come."""
        kept = self._embeddings
        before, kept.most = kept.most, max(MOST, count)
        try:
            yield
        finally:
            kept.most = before

    @contextmanager
    def using_encoded(self, texts: Embeddings, pictures: PictureEncodings) -> Iterator[None]:
        """Has texts and control images encoded into other memories meanwhile: for what is no other run's business."""
        before = self._embeddings, self.pictures
        self._embeddings, self.pictures = texts, pictures
        try:
            yield
        finally:
            self._embeddings, self.pictures = before

    def _encode(self, wanted: Wanted, name: str, keys: Sequence[EmbeddingKey], observer: Observer) -> None:
        """Encodes texts of one encoder; each is kept at once, should the next one fail."""
        encoder: Encoder = wanted.model.parts[name]  # pyright: ignore[reportAssignmentType]
        self.apply_loras(wanted, name, observer)
        held = self._part(wanted, name, observer)
        with self.on_device(wanted, name, observer) as module:
            for number, key in enumerate(keys, 1):
                _, _, text, device = key
                observer.stage(f"encoding text {number} of {len(keys)}")
                observer.check()
                embedding = encoder.encode(module, text, device)
                # nothing is kept under the name of what it was not made with
                held.check_files()
                self._embeddings.put(key, embedding)
                self.counters.texts_encoded += 1
                self.stored.keep(key, embedding)

    @contextmanager
    def on_device(self, wanted: Wanted, part: str, observer: Observer) -> Iterator[nn.Module]:
        """Loads a part if need be, and lends it on the compute device, where it stays as long as there is room.

        Args:
            wanted: the run's.
            part: which one.
            observer: told of a load, asked for interruption.

        Raises:
            FileError: a file was written to while its weights were used.
        """
        held = self._part(wanted, part, observer)
        residence = held.residence
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
            held.check_files()
        finally:
            if wanted.handle.options.placement == "sequential" and not residence.at_home:
                residence.leave(EVERYTHING)
            self.counters.bytes_moved += residence.moved - before

    @contextmanager
    def denoisers(self, wanted: Wanted, step_cache: StepCache, observer: Observer) -> Iterator[Denoisers]:
        """Lends denoisers by name, with their LoRAs on, one at a time: each stays until another one is asked for.

        Args:
            wanted: the run's.
            step_cache: what the denoisers' blocks are called through.
            observer: told of a load, asked for interruption.
        """
        with ExitStack() as visits:
            there: dict[str, nn.Module] = {}

            def denoiser(part: str) -> nn.Module:
                if part not in there:
                    visits.close()
                    there.clear()
                    self.apply_loras(wanted, part, observer)
                    there[part] = visits.enter_context(self.on_device(wanted, part, observer))
                    kind = wanted.model.parts[part]
                    root = kind.lora_root(there[part])
                    blocks = kind.blocks(root)
                    if wanted.handle.options.compiled:
                        visits.enter_context(compiled(blocks))
                        observer.stage("sampling; the first step compiles")
                    else:
                        observer.stage("sampling")
                    visits.enter_context(step_cache.on(root, blocks, kind.returned))
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
        self._parts.sweep()
        self._give_back()

    def apply_loras(self, wanted: Wanted, part: str, observer: Observer) -> None:
        """Loads a part if need be and gives it exactly those of the run's LoRAs that are for it."""
        stack = self._part(wanted, part, observer).loras
        observer.check()
        self._set_loras(wanted, stack, wanted.loras_of(part), observer)

    def take_loras_off(self, wanted: Wanted) -> None:
        """Makes the loaded parts of a run as their files have them: the next run with LoRAs merges them anew."""
        for key in wanted.keys.values():
            if (held := self._parts.find(key)) is not None:
                self._set_loras(wanted, held.loras, (), SILENT)

    def _set_loras(self, wanted: Wanted, stack: LoraStack, loras: tuple[AppliedLora, ...], observer: Observer) -> None:
        stack.merging.room = self._parts.room_beside(wanted)
        before = stack.work
        try:
            with self._metered():
                stack.set(loras, wanted.model.facts, wanted.handle.checkpoint, observer)
        finally:
            files, merged, restored = (now - then for now, then in zip(stack.work, before, strict=True))
            self.counters.lora_files_read += files
            self.counters.tensors_merged += merged
            self.counters.tensors_restored += restored
            if merged or restored:
                trim_ram()

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
        with self._metered():
            module = kind.load(key.source, dtype, key.quantization, key.plain, observer, key.only)
        # what was read to make it
        trim_ram()
        self.counters.parts_loaded += 1
        root = kind.lora_root(module)
        if kind.role == "denoiser" and (processes := self._machine.processes()) > 1:
            share(root, processes, uneven=kind.uneven)
        residence = Residence(module, kind.blocks(root), self.device, lambda: self._forget(key))
        return LoadedPart(residence, LoraStack(root, key.source, dtype, residence))

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Counts what is read of tensors meanwhile."""
        before = METER.bytes
        try:
            yield
        finally:
            self.counters.bytes_read += METER.bytes - before

    def _forget(self, key: PartKey) -> None:
        """Drops a part that was asked to leave a device that is its home."""
        with self._turn.taken():
            if self._parts.find(key) is not None:
                self._parts.drop([key])
                self._give_back()

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
        check_step_caching(handle.options.step_caching, self._machine.processes())
        if self._checked != (handle.model, handle.checkpoint):
            model.check(handle.checkpoint)
            if (processes := self._machine.processes()) > 1:
                for name in model.facts.files.of_role("denoiser"):
                    check_shared(
                        model.parts[name].outline(handle.checkpoint.source(name)), processes, model.facts.title
                    )
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
