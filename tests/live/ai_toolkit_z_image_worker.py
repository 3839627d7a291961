"""Renders Z-Image previews with AI Toolkit's own code and records the stages, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_z_image_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a diffusers folder; AI Toolkit has one class for
zimage, zimage:turbo and zimage:deturbo. One more key:
    assistant_lora_path   null or a training adapter, as the turbo presets have one: it is merged into the weights, and
                          a live copy with the multiplier -1 takes it out again in previews

Records initial_noise, pred_cond_step0 and, with guidance, pred_uncond_step0 (raw output for the prompt and the negative
one, the two of one call), pred_step0 (what the scheduler gets), final_latents, vae_decode_input, prompt_embeds,
negative_embeds (real tokens only), image_uint8.
"""

from __future__ import annotations

from typing import Any

from ai_toolkit_common import Job, PipelineRecorder, import_model, main, model_config


def load_model(job: Job) -> Any:
    config = model_config(job, "zimage", assistant_lora_path=job.get("assistant_lora_path"))
    sd = import_model("z_image").ZImageModel(device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"])
    sd.load_model()
    return sd


class ZImageRecorder(PipelineRecorder):
    def __init__(self, sd: Any) -> None:
        from diffusers import ZImagePipeline
        from toolkit.samplers.custom_flowmatch_sampler import CustomFlowMatchEulerDiscreteScheduler

        super().__init__(sd, ZImagePipeline, CustomFlowMatchEulerDiscreteScheduler)

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        # lists: one tensor for each picture of a batch
        self.keep("prompt_embeds", arguments["prompt_embeds"][0])
        self.keep("negative_embeds", arguments["negative_prompt_embeds"][0])

    def keep_prediction(self, output: Any) -> None:
        # [16, 1, h, w] for each text, the middle axis being time
        for name, prediction in zip(("pred_cond_step0", "pred_uncond_step0"), output[0], strict=False):
            self.keep(name, prediction.transpose(0, 1), first=True)


if __name__ == "__main__":
    main(load_model, ZImageRecorder)
