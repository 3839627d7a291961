"""The weights behind the handles, and the cheapest way from what is loaded to what is asked for.

One model is held at a time, part by part. A part is loaded when a run first needs it and kept until a run needs another
one in its place. LoRAs, strengths, prompts and seeds never reload a part. Between runs everything lies in CPU memory,
as far as the plan (``plan.py``) finds room for it there.
"""

from __future__ import annotations

import gc
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .attention import check_attention
from .checkpoint import Checkpoint
from .errors import DeviceMemoryError, InputError
from .handle import DType, PipelineHandle, Quantization
from .loading import torch_dtype
from .lora.stack import AppliedLora, LoraStack, resolve
from .memory import MemoryPlanner
from .models import find_model
from .models.facts import ModelFacts, Recipe
from .models.runtime import Embedding, ModelRuntime, Text
from .placement import lent
from .plan import DeviceMemory, Plan
from .ram import total_ram
from .sources.source import Source, packed_as

if TYPE_CHECKING:
    from torch import nn

    from .observer import Observer
    from .sizes import Size

PARTS = ("text_encoder", "transformer", "vae")
_MOST_EMBEDDINGS = 64  # kept texts; one is about 1 MB with Lumina2
_EVERYTHING = 1 << 62  # bytes: more than there are


@dataclass(frozen=True)
class PartKey:
    """Tells one loaded part from another: equal keys mean equal weights."""

    model: str
    source: Source
    dtype: DType
    quantization: Quantization


@dataclass
class Counters:
    """What the engine did since it was made; tests and the report read it.

    Attributes:
        parts_loaded: parts read from a checkpoint.
        texts_encoded: texts that went through a text encoder.
        lora_files_read: LoRA files read.
        tensors_restored: the checkpoint's tensors read again to undo a merge.
    """

    parts_loaded: int = 0
    texts_encoded: int = 0
    lora_files_read: int = 0
    tensors_restored: int = 0


# the encoder, what its LoRAs are, the text, the device
_EmbeddingKey = tuple[PartKey, tuple[AppliedLora, ...], Text, str]


@dataclass
class _Part:
    key: PartKey
    module: nn.Module
    loras: LoraStack


class Engine:
    """Holds weights and brings them to the device.

    Args:
        device: finds the compute device, e.g. ``"cuda:0"``.
        make_room: called with the bytes that are about to be put on the device.
        memory: reads the device's memory; None where it has none of its own, as the CPU.
        ram: reads the computer's memory in total, in bytes; the same in every run.
    """

    def __init__(
        self,
        device: Callable[[], str],
        make_room: Callable[[int], None],
        memory: Callable[[], DeviceMemory | None] = lambda: None,
        ram: Callable[[], int] = total_ram,
    ) -> None:
        self.counters = Counters()
        self._device = device
        self._make_room = make_room
        self._planner = MemoryPlanner(self.runtime, device, memory, ram)
        self._parts: dict[str, _Part] = {}
        self._embeddings: OrderedDict[_EmbeddingKey, Embedding] = OrderedDict()
        self._runtimes: dict[str, ModelRuntime] = {}
        self._checked: set[tuple[str, Checkpoint]] = set()

    @property
    def device(self) -> str:
        return self._device()

    @property
    def resident(self) -> frozenset[str]:
        """The parts that are in memory now."""
        return frozenset(self._parts)

    def runtime(self, model: ModelFacts) -> ModelRuntime:
        """The model's code, imported when it is first used."""
        if model.id not in self._runtimes:
            self._runtimes[model.id] = model.load_runtime()
        return self._runtimes[model.id]

    def part_key(self, handle: PipelineHandle, part: str) -> PartKey:
        """What a handle means by a part, quantisation decided."""
        quantization = self._planner.quantization(handle, part)
        return PartKey(handle.model, handle.checkpoint.source(part), handle.dtype, quantization)

    def held_as(self, handle: PipelineHandle, part: str) -> str:
        """How a part's weights are held where they cannot be written to, e.g. ``qfloat8``; else empty."""
        quantization = self.part_key(handle, part).quantization
        if quantization != "none":
            return quantization
        return packed_as(handle.checkpoint.source(part))

    def check_weights(self, handle: PipelineHandle) -> None:
        """Refuses what cannot be run before the run starts, and before a loaded part is given up.

        Raises:
            FileError: a part's files are damaged or incomplete; names the file or the tensor.
            InputError: the device has no such quantisation.
        """
        for part in PARTS:
            source, quantization = handle.checkpoint.source(part), self.part_key(handle, part).quantization
            if quantization != "none" and packed_as(source):
                raise InputError(
                    f"{source.name!r} is quantised already, and {quantization} would quantise it a second time. Set "
                    f"{part}_quantization to none, or choose an unquantised file."
                )
        float8 = {self.held_as(handle, part) for part in PARTS} & {"qfloat8", "fp8_e4m3fn", "scaled float8"}
        if self.device.startswith("mps") and float8:
            raise InputError(
                f"{', '.join(float8)} is not to be had on Apple's MPS, which has no 8-bit floating point. Choose qint8 "
                "or none on AITK Runtime Options, and files without scaled float8."
            )
        check_attention(handle.options.transformer_attention, self.device, handle.dtype)
        if (handle.model, handle.checkpoint) not in self._checked:
            for part in PARTS:
                self.runtime(find_model(handle.model)).check_weights(part, handle.checkpoint)
            self._checked = {(handle.model, handle.checkpoint)}

    def plan_loras(self, handle: PipelineHandle, recipe: Recipe) -> tuple[AppliedLora, ...]:
        """How each of the handle's LoRAs will be applied.

        Raises:
            LoraError: it cannot be applied as asked.
        """
        return resolve(handle.loras, recipe, {part: self.held_as(handle, part) for part in PARTS})

    def plan_memory(self, handle: PipelineHandle, size: Size, loras: Sequence[AppliedLora]) -> Plan:
        """How a run that begins now holds and places its parts; in force until the next one.

        Args:
            handle: whose parts.
            size: of the pictures.
            loras: the run's.
        """
        return self._planner.make(handle, size, loras)

    def embeddings(
        self, handle: PipelineHandle, texts: Sequence[Text], loras: tuple[AppliedLora, ...], observer: Observer
    ) -> list[Embedding]:
        """The embeddings of texts, on the CPU; those that this encoder has not seen are encoded in one visit.

        Args:
            handle: whose encoder.
            texts: what to encode.
            loras: the run's; those of the text encoder are applied before anything is encoded.
            observer: told of a load, asked for interruption.
        """
        device = self.device
        runtime = self.runtime(find_model(handle.model))
        own = tuple(lora for lora in loras if lora.part == "text_encoder")
        keys: list[_EmbeddingKey] = [(self.part_key(handle, "text_encoder"), own, text, device) for text in texts]
        new = [key for key in dict.fromkeys(keys) if key not in self._embeddings]
        if new:
            self.apply_loras(handle, "text_encoder", loras, observer)
            with self.on_device(handle, "text_encoder", observer) as encoder:
                for key in new:
                    observer.check()
                    self._embeddings[key] = runtime.encode(encoder, key[2], device)
                    self.counters.texts_encoded += 1
        for key in keys:
            self._embeddings.move_to_end(key)
        found = [self._embeddings[key] for key in keys]
        while len(self._embeddings) > _MOST_EMBEDDINGS:
            self._embeddings.popitem(last=False)
        return found

    @contextmanager
    def on_device(self, handle: PipelineHandle, part: str, observer: Observer) -> Iterator[nn.Module]:
        """Loads a part if need be, lends it on the compute device, and takes it back to the CPU.

        Args:
            handle: whose part.
            part: which one.
            observer: told of a load, asked for interruption.
        """
        module = self._part(handle, part, observer).module
        device = self.device
        observer.check()
        streamed: Sequence[nn.Module] = ()
        if device != "cpu":
            from .measure import held_bytes

            plan = self._planner.of(handle).part(part)
            blocks = self.runtime(find_model(handle.model)).blocks(part, module)
            streamed = blocks[len(blocks) - plan.streamed :]
            # one streamed block is there at a time
            apart = [held_bytes(block) for block in streamed]
            self._make_room(held_bytes(module) - sum(apart) + max(apart, default=0) + plan.beside)
        with lent(module, device, streamed):
            yield module

    @contextmanager
    def device_memory(self) -> Iterator[None]:
        """Hands the device's memory back after a run.

        Raises:
            DeviceMemoryError: the run needed more than there is. Everything else on the device was asked to leave, so
                that the next run finds more room.
        """
        import torch

        device = self.device
        try:
            yield
        except RuntimeError as error:
            # torch has a class of its own for CUDA alone
            if not any(words in str(error) for words in ("out of memory", "allocate memory")):
                raise
            where = "The CPU" if "CPUAllocator" in str(error) else device
            # the frames below still hold the activations
            traceback.clear_frames(error.__traceback__)
            if device != "cpu":
                self._make_room(_EVERYTHING)
            raise DeviceMemoryError(
                f"{where} ran out of memory. Render a smaller size, set a quantization or raise blocks_on_cpu on AITK "
                "Runtime Options, or close other programs. What is loaded is kept: the next run starts from it."
            ) from error
        finally:
            # torch keeps what it freed; other nodes and programs would miss it
            backend = getattr(torch, torch.device(device).type, None)
            if backend is not None and hasattr(backend, "empty_cache"):
                backend.empty_cache()

    def apply_loras(
        self, handle: PipelineHandle, part: str, loras: tuple[AppliedLora, ...], observer: Observer
    ) -> None:
        """Loads a part if need be and gives it exactly those of the run's LoRAs that are for it."""
        stack = self._part(handle, part, observer).loras
        observer.check()
        try:
            own = tuple(lora for lora in loras if lora.part == part)
            stack.set(own, find_model(handle.model), handle.checkpoint, observer.check)
        finally:
            self.counters.lora_files_read += stack.files_read
            self.counters.tensors_restored += stack.tensors_read
            stack.files_read = stack.tensors_read = 0

    def _part(self, handle: PipelineHandle, part: str, observer: Observer) -> _Part:
        key = self.part_key(handle, part)
        held = self._parts.get(part)
        if held is not None and held.key == key:
            return held
        runtime = self.runtime(find_model(handle.model))
        observer.stage(f"loading {part} of {key.source.name}")
        observer.check()
        del held
        # what this handle has no use for makes room, and what this machine cannot hold beside the new part
        leaves = self._planner.of(handle).leaves_before(part)
        for name in [n for n, other in self._parts.items() if n in leaves or other.key != self.part_key(handle, n)]:
            del self._parts[name]
        gc.collect()
        dtype = torch_dtype(key.dtype)
        module = runtime.load(key.source, dtype, key.quantization, observer.check)
        loras = LoraStack(runtime.lora_root(module), key.source, dtype, self.device)
        self._parts[part] = _Part(key, module, loras)
        self.counters.parts_loaded += 1
        return self._parts[part]
