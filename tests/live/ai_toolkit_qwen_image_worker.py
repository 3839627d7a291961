"""Renders Qwen-Image previews with AI Toolkit's own code and records the stages, as the reference of a live test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_qwen_image_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a diffusers folder; AI Toolkit has one class for
qwen_image and qwen_image:2512. One more key:
    low_vram   whether the autoencoder tiles

Records initial_noise, pred_cond_step0 and, with guidance, pred_uncond_step0 (tokens, as the transformer gives them),
pred_step0 (what the scheduler gets), final_latents (unpacked, [1, 16, 1, h, w]), vae_decode_input, prompt_embeds,
negative_embeds (all rows that are encoded), image_uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ai_toolkit_common import Job, PipelineRecorder, import_model, main, model_config


def load_model(job: Job) -> Any:
    config = model_config(job, "qwen_image", low_vram=bool(job.get("low_vram")))
    sd = import_model("qwen_image").QwenImageModel(
        device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"]
    )
    sd.load_model()
    return sd


class QwenImageRecorder(PipelineRecorder):
    def __init__(self, sd: Any) -> None:
        from diffusers import QwenImagePipeline
        from toolkit.samplers.custom_flowmatch_sampler import CustomFlowMatchEulerDiscreteScheduler

        super().__init__(sd, QwenImagePipeline, CustomFlowMatchEulerDiscreteScheduler)
        self._size = (0, 0)

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        self.keep("prompt_embeds", arguments["prompt_embeds"])
        self.keep("negative_embeds", arguments["negative_prompt_embeds"])
        self._size = (arguments["height"], arguments["width"])

    def keep_prediction(self, output: Any) -> None:
        name = "pred_uncond_step0" if "pred_cond_step0" in self.items[-1] else "pred_cond_step0"
        self.keep(name, output[0], first=True)

    def on_step(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from diffusers import QwenImagePipeline

        result = super().on_step(real, *args, **kwargs)
        # [1, tokens, 64] -> [1, 16, 1, h, w]
        self.keep("final_latents", QwenImagePipeline._unpack_latents(result[0], *self._size, 8))
        return result


if __name__ == "__main__":
    main(load_model, QwenImageRecorder)
