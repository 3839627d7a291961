"""Renders jobs of ``ai_toolkit_common.py`` with this pack's pipelines, in any interpreter.

    PYTHON own_worker.py JOB.json OUT.safetensors

Without the two files it does the jobs of whose files it reads from stdin, see ``each_job`` there. The job's ``model``
is the pack's name of the model, e.g. ``zimage``; ``recipe`` is one of the trainer's earlier times; ``held_as`` is how
the transformer is held where AI Toolkit takes another type than ``quantize_transformer``, which the job names;
``low_vram`` turns vae_tiling on; ``options`` and ``recipe_options`` are what the user changed on AITK Runtime Options,
of those that models declare, and on AITK Recipe Options. For item i the output holds `item{i}.final_latents`, as the
loop leaves them, and `item{i}.image_uint8`.

Equality to the bit is judged in one interpreter: other builds of torch round differently.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ai_toolkit_common import each_job

ROOT = Path(__file__).resolve().parents[2]


def load_pack() -> None:
    """Makes this checkout importable as ``comfyui_aitk``."""
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    tasks.load_pack()


def work(job_path: str, out_path: str) -> None:
    import numpy as np
    import torch
    from comfyui_aitk.pipelines.engine.engine import Engine
    from comfyui_aitk.pipelines.handle import ControlImages, LoraSpec, PipelineHandle
    from comfyui_aitk.pipelines.lora.file import open_lora
    from comfyui_aitk.pipelines.lora.recovery_adapter import with_recovery_adapter
    from comfyui_aitk.pipelines.lora.training_adapter import with_training_adapter
    from comfyui_aitk.pipelines.machine.machine import PlainMachine
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.models.model import Denoisers, Denoising
    from comfyui_aitk.pipelines.observer import SilentObserver
    from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
    from comfyui_aitk.pipelines.run.request import SampleRequest
    from comfyui_aitk.pipelines.run.sample import sample
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import Gemma2Model

    def picture(path: str) -> torch.Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))[None].float() / 255

    job = json.loads(Path(job_path).read_text())
    model = find_model(job["model"])
    options = dict(job.get("options", {}))
    if model.id == "lumina2":
        # what a plain Gemma2 does under this version of transformers, which AI Toolkit beside it leaves as it is
        options.setdefault("text_encoder_attention", "no softcap" if Gemma2Model._supports_sdpa else "softcap")
    if job.get("low_vram"):
        options["vae_tiling"] = True
    folder = Path(job["checkpoint"])
    handle = PipelineHandle(
        model.id,
        Checkpoint.open(folder, folder.name, model.files),
        {"bf16": "bfloat16", "float32": "float32"}[job["dtype"]],
        RuntimeOptions(
            job.get("held_as") or job["quantize_transformer"] or "none",
            job["quantize_te"] or "none",
            own=Chosen.of(options),
        ),
    )
    if job.get("assistant_lora_path"):
        adapter = Path(job["assistant_lora_path"])
        handle = with_training_adapter(handle, adapter, adapter.name, model)
    if job.get("recovery_adapter"):
        adapter = Path(job["recovery_adapter"])
        handle = replace(handle, options=replace(handle.options, transformer_quantization="model default"))
        handle = with_recovery_adapter(handle, adapter, adapter.name, job["quantize_transformer"], model)
    engine = Engine(PlainMachine())
    # the result's LATENT has ComfyUI's scale, and the way back is not exact
    code: Any = engine.model(handle)
    real = code.denoise
    finals: list[torch.Tensor] = []

    def denoise(denoisers: Denoisers, work: Denoising) -> torch.Tensor:
        finals.append(real(denoisers, work))
        return finals[-1]

    code.denoise = denoise
    tensors: dict[str, torch.Tensor] = {}
    # AI Toolkit merges where all pictures of a round have one multiplier
    live = len({item["network_multiplier"] for item in job["items"]}) > 1
    for index, item in enumerate(job["items"]):
        current = handle
        if job["lora"]:
            path = Path(job["lora"])
            application = "live" if live else "auto"
            file = open_lora(path, path.name, model, handle.checkpoint)
            current = handle.with_lora(
                LoraSpec(
                    path.name,
                    file.stamp,
                    item["network_multiplier"],
                    application,
                    file.title,
                    file.mergeable,
                    file.parts,
                )
            )
        request = SampleRequest(
            job.get("recipe", "trainer preview"), item["prompt"], item["negative_prompt"], item["width"],
            item["height"], item["steps"], item["guidance"], item["seed"],
            control=ControlImages(tuple(map(picture, item["control"]))) if item.get("control") else None,
            recipe_options=Chosen.of(job.get("recipe_options", {})),
        )  # fmt: skip
        result = sample(engine, current, request, SilentObserver())
        tensors[f"item{index}.final_latents"] = finals[index].cpu().contiguous()
        tensors[f"item{index}.image_uint8"] = (result.images[0] * 255).round().to(torch.uint8)
    save_file(tensors, out_path)


if __name__ == "__main__":
    load_pack()
    each_job(work)
