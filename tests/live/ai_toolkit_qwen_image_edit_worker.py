"""Renders previews of Qwen-Image-Edit, -2509 and -2511 with AI Toolkit's own code and records the stages.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_qwen_image_edit_worker.py JOB.json OUT.safetensors

As ``ai_toolkit_qwen_image_worker``, with a checkpoint that has a processor; ``model`` is the pack's name of the model,
whose tag AI Toolkit drops. An item has ``control``, and may have ``control_keys`` and ``do_cfg_norm``.
"""

from __future__ import annotations

from typing import Any

from ai_toolkit_common import Job, import_model, main, model_config
from ai_toolkit_qwen_image_worker import QwenImageRecorder


def load_model(job: Job) -> Any:
    arch = job["model"].partition(":")[0]
    config = model_config(job, arch, low_vram=bool(job.get("low_vram")))
    package = import_model("qwen_image")
    made = package.QwenImageEditModel if arch == "qwen_image_edit" else package.QwenImageEditPlusModel
    sd = made(device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"])
    sd.load_model()
    return sd


class EditRecorder(QwenImageRecorder):
    def __init__(self, sd: Any) -> None:
        super().__init__(sd)
        self.pipeline = type(sd.get_generation_pipeline())


if __name__ == "__main__":
    main(load_model, EditRecorder)
