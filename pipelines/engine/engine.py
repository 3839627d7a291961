"""The weights behind the handles, and the cheapest way from what is loaded to what is asked for.

One model is held at a time, part by part. A part is loaded when a run first needs it and kept until a run needs another
one in its place. LoRAs, strengths, prompts and seeds never reload a part. Between runs everything lies in CPU memory,
as far as the plan (``machine/plan.py``) finds room for it there.
"""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DeviceMemoryError, InputError
from ..layers.attention import check_attention
from ..layers.fill import out_of_memory
from ..layers.holding import FLOAT8_FORMS
from ..layers.measure import held_bytes
from ..lora.stack import LoraStack, resolve
from ..machine.lend import lent
from ..machine.ram import trim_ram
from ..models import find_model, load_model
from ..options import QUANTIZATION_INPUTS, torch_dtype
from ..weights.source import packed_as
from .embeddings import EmbeddingKey, Embeddings
from .planner import Asked, Planner
from .wanted import PartKey, Wanted

if TYPE_CHECKING:
    from torch import nn

    from ..handle import PipelineHandle
    from ..machine.machine import Machine
    from ..models.model import Denoisers, Model
    from ..models.recipe import Recipe
    from ..observer import Observer
    from ..parts.encoder import Embedding, Encoder, Text
    from ..pictures.sizes import Size
    from ..weights.checkpoint import Checkpoint

_EVERYTHING = 1 << 62  # bytes: more than there are
_ASK_EVERY = 0.05  # seconds between two looks at a waiting run's observer


@dataclass
class Counters:
    """What the engine did since it was made; tests and the report read it.

    Attributes:
        parts_loaded: parts read from a checkpoint.
        texts_encoded: texts that went through a text encoder.
        lora_files_read: LoRA files read.
        tensors_merged: a part's tensors that LoRAs were merged into.
        tensors_restored: the checkpoint's tensors read again to undo a merge.
    """

    parts_loaded: int = 0
    texts_encoded: int = 0
    lora_files_read: int = 0
    tensors_merged: int = 0
    tensors_restored: int = 0


@dataclass
class _Loaded:
    key: PartKey
    module: nn.Module
    loras: LoraStack


class Engine:
    """Holds weights and brings them to the device of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.counters = Counters()
        self._machine = machine
        self._planner = Planner(machine)
        self._parts: dict[str, _Loaded] = {}
        self._embeddings = Embeddings()
        self._models: dict[str, Model] = {}
        self._checked: tuple[str, Checkpoint] | None = None
        self._turn = threading.RLock()

    @property
    def device(self) -> str:
        return self._machine.device()

    @property
    def resident(self) -> frozenset[str]:
        """The parts that are in memory now."""
        return frozenset(self._parts)

    def release(self) -> None:
        """Gives everything back: weights, embeddings, and the device's memory. Handles stay valid.

        Waits for the end of a run that is going on in another thread.
        """
        with self._turn:
            self._parts.clear()
            self._embeddings.clear()
            self._checked = None
            gc.collect()
            trim_ram()
            self._empty_cache()

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
        try:
            yield
        finally:
            self._turn.release()

    def model(self, handle: PipelineHandle) -> Model:
        """The model's code, imported when it is first used."""
        facts = find_model(handle.model)
        known = self._models.get(facts.id)
        if known is None or known.facts is not facts:
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
        _check_options(model, handle)
        asked = Asked(model, handle, recipe)
        keys = self._planner.keys(asked)
        self._check(model, handle, keys)
        loras = resolve(handle.loras, recipe, {name: key.held_as for name, key in keys.items()})
        latents = None if size is None else model.latent_shape(size)
        return Wanted(model, handle, keys, loras, self._planner.plan(asked, loras, latents))

    def embeddings(self, wanted: Wanted, texts: Sequence[Text], observer: Observer) -> list[Embedding]:
        """The embeddings of texts, on the CPU; those that were not seen yet are encoded in one visit an encoder.

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
        for name in dict.fromkeys(text.encoder for _, _, text, _ in new):
            encoder: Encoder = wanted.model.parts[name]  # pyright: ignore[reportAssignmentType]
            self.apply_loras(wanted, name, observer)
            with self.on_device(wanted, name, observer) as module:
                for key in new:
                    if key[2].encoder == name:
                        observer.check()
                        self._embeddings.put(key, encoder.encode(module, key[2], device))
                        self.counters.texts_encoded += 1
        return self._embeddings.take(keys)

    @contextmanager
    def on_device(self, wanted: Wanted, part: str, observer: Observer) -> Iterator[nn.Module]:
        """Loads a part if need be, lends it on the compute device, and takes it back to the CPU.

        Args:
            wanted: the run's.
            part: which one.
            observer: told of a load, asked for interruption.
        """
        module = self._part(wanted, part, observer).module
        device = self.device
        observer.check()
        streamed: Sequence[nn.Module] = ()
        if device != "cpu":
            plan, kind = wanted.plan.part(part), wanted.model.parts[part]
            blocks = kind.blocks(kind.lora_root(module))
            streamed = blocks[len(blocks) - plan.streamed :]
            # one streamed block is there at a time
            apart = [held_bytes(block) for block in streamed]
            self._machine.make_room(held_bytes(module) - sum(apart) + max(apart, default=0) + plan.beside)
        with lent(module, device, streamed):
            yield module

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
                return there[part]

            yield denoiser

    @contextmanager
    def device_memory(self) -> Iterator[None]:
        """Hands the device's memory back after a run.

        Raises:
            DeviceMemoryError: the run needed more than there is. Everything else on the device was asked to leave, so
                that the next run finds more room.
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
            if device != "cpu":
                self._machine.make_room(_EVERYTHING)
            raise DeviceMemoryError(
                f"{where} ran out of memory. Render a smaller size, set a quantization or raise blocks_on_cpu on AITK "
                "Runtime Options, or close other programs. What is loaded is kept: the next run starts from it."
            ) from error
        finally:
            self._empty_cache()

    def apply_loras(self, wanted: Wanted, part: str, observer: Observer) -> None:
        """Loads a part if need be and gives it exactly those of the run's LoRAs that are for it."""
        stack = self._part(wanted, part, observer).loras
        observer.check()
        try:
            stack.set(wanted.loras_of(part), wanted.model.facts, wanted.handle.checkpoint, observer.check)
        finally:
            self.counters.lora_files_read += stack.files_read
            self.counters.tensors_merged += stack.tensors_merged
            self.counters.tensors_restored += stack.tensors_read
            if stack.tensors_merged or stack.tensors_read:
                trim_ram()
            stack.files_read = stack.tensors_merged = stack.tensors_read = 0

    def _part(self, wanted: Wanted, part: str, observer: Observer) -> _Loaded:
        key = wanted.keys[part]
        held = self._parts.get(part)
        if held is not None and held.key == key:
            return held
        kind = wanted.model.parts[part]
        observer.stage(f"loading {part} of {key.source.name}")
        observer.check()
        del held
        # what this run has no use for makes room, and what this machine cannot hold beside the new part
        leaves = wanted.plan.part(part).leaves_before
        gone = [name for name, other in self._parts.items() if name in leaves or other.key != wanted.keys.get(name)]
        for name in gone:
            del self._parts[name]
        if gone:
            # modules and their hooks are circles; where nothing left, a second of looking would find nothing
            gc.collect()
        dtype = torch_dtype(key.dtype)
        module = kind.load(key.source, dtype, key.quantization, key.plain, observer.check)
        # what was read to make it
        trim_ram()
        self._parts[part] = _Loaded(key, module, LoraStack(kind.lora_root(module), key.source, dtype, self.device))
        self.counters.parts_loaded += 1
        return self._parts[part]

    def _check(self, model: Model, handle: PipelineHandle, keys: dict[str, PartKey]) -> None:
        """Refuses what cannot be run before the run starts, and before a loaded part is given up."""
        for name, key in keys.items():
            if key.quantization != "none" and packed_as(key.source):
                raise InputError(
                    f"{key.source.name!r} is quantised already, and {key.quantization} would quantise it a second "
                    f"time. Set {QUANTIZATION_INPUTS[model.parts[name].role]} to none, or choose an unquantised file."
                )
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
