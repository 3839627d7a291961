"""Renders Lumina2 previews with AI Toolkit's own code and records the stages, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a diffusers folder, and where both qtypes are
given they are equal: AI Toolkit has one for Lumina2.

Records initial_noise, pred_cond_step0 (raw output for the prompt), pred_step0 (what the scheduler gets), final_latents,
vae_decode_input, prompt_embeds, prompt_mask, negative_embeds, negative_mask, image_uint8.
"""

from __future__ import annotations

from typing import Any

from ai_toolkit_common import Job, PipelineRecorder, check_one_qtype, main, model_config


def load_model(job: Job) -> Any:
    from toolkit.sampler import get_sampler
    from toolkit.stable_diffusion_model import StableDiffusion

    check_one_qtype(job)
    sd = StableDiffusion(
        device=job.get("device", "cpu"),
        model_config=model_config(job, "lumina2"),
        dtype=job["dtype"],
        noise_scheduler=get_sampler("flowmatch", {"prediction_type": "epsilon"}, arch="lumina2"),
    )
    sd.load_model()
    return sd


class Lumina2Recorder(PipelineRecorder):
    def __init__(self, sd: Any) -> None:
        from diffusers import Lumina2Pipeline
        from toolkit.samplers.custom_flowmatch_sampler import CustomFlowMatchEulerDiscreteScheduler

        super().__init__(sd, Lumina2Pipeline, CustomFlowMatchEulerDiscreteScheduler)

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        self.keep("prompt_embeds", arguments["prompt_embeds"])
        self.keep("prompt_mask", arguments["prompt_attention_mask"])
        self.keep("negative_embeds", arguments["negative_prompt_embeds"])
        self.keep("negative_mask", arguments["negative_prompt_attention_mask"])

    def keep_prediction(self, output: Any) -> None:
        super().keep_prediction(output[0])


if __name__ == "__main__":
    main(load_model, Lumina2Recorder, sampler="flowmatch")
