"""What the tests of several models share: short graphs of the nodes, jobs of recorded cases, the hub's cache."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.pipelines.engine.engine import Engine
from comfyui_aitk.pipelines.engine.wanted import Wanted
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.machine.machine import PlainMachine
from comfyui_aitk.pipelines.machine.plan import DeviceMemory
from comfyui_aitk.pipelines.machine.residence import Residence
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.model import Denoising, Job, Typed
from comfyui_aitk.pipelines.models.schedule import Schedule
from comfyui_aitk.pipelines.pictures.sizes import Size
from torch import nn

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def render(
    load: dict,
    *,
    lora: dict | None = None,
    stack: dict | None = None,
    control: list | None = None,
    options: dict | None = None,
    **sample: object,
) -> tuple:
    """The sampler's outputs for a loader, in float32 by default; at most one LoRA, pictures and recipe options.

    Args:
        load: inputs of the loader.
        lora: inputs of Apply AITK LoRA.
        stack: inputs of AITK LoRA Stack, in its place.
        control: IMAGE tensors.
        options: inputs of AITK Recipe Options that are not its defaults.
        sample: inputs of the sampler that are not these.
    """
    inputs = {
        "pipeline": ["load", 0], "prompt": "a red fox", "negative_prompt": "", "width": 64, "height": 80, "steps": 2,
        "guidance_scale": 4.0, "seed": 1, "recipe": "trainer preview", "trigger_word": "", "system_prompt": "",
        "batch_size": 1,
    } | sample  # fmt: skip
    graph = {
        "load": _node("LoadAITKModel", **{"dtype": "float32"} | load),
        "sample": _node("AITKSampler", **inputs),
        "save": _node("AITKSaveImage", images=["sample", 0], report=["sample", 6], filename_prefix="x", format="png"),
    }
    if lora is not None:
        own = {"pipeline": ["load", 0], "strength": 0.8, "application": "auto"}
        graph["lora"] = _node("ApplyAITKLoRA", **own | lora)
        graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    if stack is not None:
        graph["stack"] = _node("AITKLoRAStack", **{"pipeline": ["load", 0], "application": "auto"} | stack)
        graph["sample"]["inputs"]["pipeline"] = ["stack", 0]
    if options is not None:
        own = {
            "cfg_trunc_ratio": 0.25, "renorm_cfg": 1.0, "discrete_flow_shift": 6.0, "system_prompt_on_negative": False,
        }  # fmt: skip
        graph["options"] = _node("AITKRecipeOptions", **own | options)
        graph["sample"]["inputs"]["recipe_options"] = ["options", 0]
    classes = dict(NODE_CLASS_MAPPINGS)
    if control is not None:
        images = {f"image_{index + 1}": [f"picture{index}", 0] for index in range(len(control))}
        graph["control"] = _node("AITKControlImages", **images)
        graph["sample"]["inputs"]["control"] = ["control", 0]
        for index, image in enumerate(control):
            graph[f"picture{index}"] = _node(f"Picture{index}")
            classes[f"Picture{index}"] = _picture(image)
    return run_prompt(graph, classes).results["sample"]


def _node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def _picture(image: torch.Tensor) -> type:
    """A node that gives this IMAGE."""

    class Picture:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "give"
        CATEGORY = "test"

        def give(self) -> tuple[torch.Tensor]:
            return (image,)

    return Picture


def noise_image(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """An IMAGE of whole 255ths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, height, width, 3), generator=generator).float() / 255


def put_into_cache(folder: Path, repository: str, files: dict[str, Path]) -> None:
    """A repository as huggingface_hub keeps it once it was downloaded."""
    home = folder / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name, source in files.items():
        target = home / "snapshots" / COMMIT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)


class AskedMachine(PlainMachine):
    """Notes the bytes that a part takes of the device while it is used, and those beside its weights.

    ``cpu:0`` takes every path of a device that is not the CPU.
    """

    def __init__(self, name: str = "cpu", memory: DeviceMemory | None = None, total: int = 1 << 40) -> None:
        super().__init__(name, memory, total)
        self.asked: list[float] = []

    def admit(self, guest: Residence, beside: int) -> None:
        super().admit(guest, beside)
        self.asked.append(guest.there + beside)

    def make_room(self, size: float) -> None:
        super().make_room(size)
        self.asked.append(size)


def leases_ended() -> None:
    """Waits until what the ended leases held is dropped."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "AITK end of a lease":
            thread.join()


def loaded(engine: Engine, part: str) -> nn.Module:
    """A part that is in memory; of several models' the latest."""
    return [engine._parts._parts[key].residence.module for key in engine._parts if key.part == part][-1]


def wanted(engine: Engine, handle: PipelineHandle, recipe: str = "trainer preview", size: Size | None = None) -> Wanted:
    """What a run of a handle means by its parts."""
    return engine.resolve(handle, find_model(handle.model).recipes[recipe], size)


def job_of(handle: PipelineHandle, case: dict, size: Size, recipe: str = "trainer preview", **change: object) -> Job:
    """What a model is asked for by a recorded case, whose fields are those of the recordings' index."""
    facts = find_model(handle.model)
    fields = {
        "recipe": facts.recipes[recipe],
        "checkpoint": handle.checkpoint,
        "dtype": handle.dtype,
        "options": handle.options,
        "quantization": dict.fromkeys(facts.files.parts, "none"),
        "size": size,
        "guidance_scale": case["guidance"],
        "typed": Typed(case["prompt"], case["negative_prompt"]),
    }
    return Job(**fields | change)  # pyright: ignore[reportArgumentType]


def denoising(job: Job, latents: torch.Tensor, schedule: Schedule, conditioning: list, **change: object) -> Denoising:
    """One picture's way, that nobody watches."""
    return Denoising(job, latents, schedule, conditioning, lambda *_: None, lambda: None, **change)  # pyright: ignore
