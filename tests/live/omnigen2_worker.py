"""Renders OmniGen2 previews with AI Toolkit's own code and records the stages, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> omnigen2_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a folder, and control at most one picture.

Records initial_noise, pred_cond_step0 (raw output for the prompt), pred_step0 (what the scheduler gets), final_latents,
vae_decode_input, prompt_embeds, negative_embeds, ref_latents (where there is a picture), image_uint8.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

from ai_toolkit_common import Job, PipelineRecorder, Watch, import_model, main, model_config


def like_numpy_1(package: str) -> None:
    """Makes the schedule what it is under NumPy 1, which AI Toolkit pins.

    A float64 scalar does not widen a float32 array there; since NumPy 2 only a Python number does not.
    """
    import numpy as np

    module = importlib.import_module(f"{package}.src.schedulers.scheduling_flow_match_euler_discrete")
    module.np = types.SimpleNamespace(
        linspace=np.linspace, float32=np.float32, sqrt=lambda value: float(np.sqrt(value))
    )


def load_model(job: Job) -> Any:
    package = import_model("omnigen2")
    like_numpy_1(package.__name__)
    sd = package.OmniGen2Model(
        device=job.get("device", "cpu"), model_config=model_config(job, "omnigen2"), dtype=job["dtype"]
    )
    sd.load_model()
    return sd


class OmniGen2Recorder(PipelineRecorder):
    def __init__(self, sd: Any) -> None:
        super().__init__(sd, type(sd.pipeline), type(sd.get_generation_pipeline().scheduler))

    def watches(self) -> list[Watch]:
        return [*super().watches(), (self.pipeline, "encode_vae", self.on_encode)]

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        self.keep("prompt_embeds", arguments["prompt_embeds"])
        self.keep("negative_embeds", arguments["negative_prompt_embeds"])

    def on_encode(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        latents = real(*args, **kwargs)
        self.keep("ref_latents", latents[0])
        return latents


if __name__ == "__main__":
    main(load_model, OmniGen2Recorder)
