"""Encodes texts with control images by this pack's reference pipeline, in any interpreter.

    PYTHON own_texts_worker.py JOB.json OUT.safetensors

Both files are those of ``inference_texts_worker.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from own_worker import load_pack


def main(job_path: str, out_path: str) -> None:
    load_pack()
    import numpy as np
    import torch
    from comfyui_aitk.pipelines.engine.engine import Engine
    from comfyui_aitk.pipelines.handle import ControlImages, PipelineHandle
    from comfyui_aitk.pipelines.machine.machine import PlainMachine
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.observer import SilentObserver
    from comfyui_aitk.pipelines.run.request import SampleRequest
    from comfyui_aitk.pipelines.run.run import Progress, prepare
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
    from PIL import Image
    from safetensors.torch import save_file

    def picture(path: str) -> torch.Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))[None].float() / 255

    job = json.loads(Path(job_path).read_text())
    model, folder = find_model(job["model"]), Path(job["checkpoint"])
    dtype = {"bf16": "bfloat16", "float32": "float32"}[job["dtype"]]
    handle = PipelineHandle(model.id, Checkpoint.open(folder, folder.name, model.files), dtype)
    engine, observer, tensors = Engine(PlainMachine()), SilentObserver(), {}
    for index, item in enumerate(job["items"]):
        request = SampleRequest(
            "reference pipeline", item["prompt"], item["negative_prompt"], 64, 64, 2, 4.0, 1,
            control=ControlImages(tuple(map(picture, item["control"]))),
        )  # fmt: skip
        run, _ = prepare(engine, handle, request, observer, Progress(engine.counters))
        code: Any = engine.model(handle)
        for name, text in zip(("prompt", "negative"), code.texts(run.job), strict=True):
            with torch.no_grad(), engine.on_device(run.wanted, "text_encoder", observer) as encoder:
                embeds = code.parts["text_encoder"].encode(encoder, text, "cpu").embeds
            tensors[f"item{index}.{name}_embeds"] = embeds.contiguous()
    save_file(tensors, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
