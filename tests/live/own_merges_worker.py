"""Merges a LoRA with this pack by the reference pipeline's recipe, in any interpreter.

    PYTHON own_merges_worker.py JOB.json OUT.safetensors

Both files are those of ``inference_merges_worker.py``. Between two strengths nothing is loaded anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from own_worker import load_pack


def main(job_path: str, out_path: str) -> None:
    load_pack()
    from comfyui_aitk.pipelines.engine.engine import Engine
    from comfyui_aitk.pipelines.handle import PipelineHandle
    from comfyui_aitk.pipelines.lora.file import open_lora
    from comfyui_aitk.pipelines.machine.machine import PlainMachine
    from comfyui_aitk.pipelines.models import find_model
    from comfyui_aitk.pipelines.observer import SilentObserver
    from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
    from safetensors.torch import save_file

    job = json.loads(Path(job_path).read_text())
    model, folder, path = find_model(job["model"]), Path(job["checkpoint"]), Path(job["lora"])
    checkpoint = Checkpoint.open(folder, folder.name, model.files)
    base = PipelineHandle(model.id, checkpoint, {"bf16": "bfloat16", "float32": "float32"}[job["dtype"]])
    lora = open_lora(path, path.name, model, checkpoint)
    engine, observer, tensors = Engine(PlainMachine()), SilentObserver(), {}
    for index, strength in enumerate(job["strengths"]):
        handle = base.with_lora(lora.spec(strength, "auto"))
        wanted = engine.resolve(handle, model.recipes["reference pipeline"])
        engine.apply_loras(wanted, model.files.main, observer)
        with engine.on_device(wanted, model.files.main, observer) as transformer:
            for name, value in transformer.state_dict().items():
                tensors[f"merged{index}.{name}"] = value.contiguous().clone()
    save_file(tensors, out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
