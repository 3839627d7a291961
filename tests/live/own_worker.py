"""Renders a job of ``ai_toolkit_worker.py`` with this pack's pipelines, in whatever interpreter it is given.

    PYTHON own_worker.py JOB.json OUT.safetensors

Equality to the bit is judged in one interpreter: other builds of torch round differently.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(job_path: str, out_path: str) -> None:
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    tasks.load_pack()

    import torch
    from comfyui_aitk.pipelines.checkpoint import Checkpoint
    from comfyui_aitk.pipelines.engine import Engine
    from comfyui_aitk.pipelines.files.header import FileStamp
    from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle, RuntimeOptions
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.observer import SilentObserver
    from comfyui_aitk.pipelines.sampling import SampleRequest, sample
    from safetensors.torch import save_file
    from transformers import Gemma2Model

    job = json.loads(Path(job_path).read_text())
    # what a plain Gemma2 does under this version of transformers, which AI Toolkit leaves as it is
    attention = "no softcap" if Gemma2Model._supports_sdpa else "softcap"
    model = find_model("lumina2")
    folder = Path(job["checkpoint"])
    handle = PipelineHandle(
        "lumina2",
        Checkpoint.open(folder, folder.name, model),
        {"bf16": "bfloat16", "float32": "float32"}[job["dtype"]],
        RuntimeOptions(job["quantize_transformer"] or "none", job["quantize_te"] or "none", attention),
    )
    engine = Engine(lambda: "cpu", lambda size: None)
    # AI Toolkit merges where all pictures of a round have one multiplier
    live = len({item["network_multiplier"] for item in job["items"]}) > 1
    tensors: dict[str, torch.Tensor] = {}
    for index, item in enumerate(job["items"]):
        current = handle
        if job["lora"]:
            path = Path(job["lora"])
            application = "live" if live else "auto"
            current = handle.with_lora(LoraSpec(path.name, FileStamp.of(path), item["network_multiplier"], application))
        request = SampleRequest(
            "trainer preview", item["prompt"], item["negative_prompt"], item["width"], item["height"], item["steps"],
            item["guidance"], item["seed"],
        )  # fmt: skip
        result = sample(engine, current, request, SilentObserver())
        if current.dtype == "float32":
            tensors[f"item{index}.vae_decode_input"] = result.latent
        else:
            # the node's LATENT is float32; rounding the model's latents back is exact
            latents = engine.runtime(model).from_comfy(result.latent, handle.checkpoint)
            tensors[f"item{index}.final_latents"] = latents.to(torch.bfloat16)
        tensors[f"item{index}.image_uint8"] = (result.images[0] * 255).round().to(torch.uint8)
    save_file(tensors, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
