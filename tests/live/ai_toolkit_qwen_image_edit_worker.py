"""Renders previews of Qwen-Image-Edit, -2509 and -2511 with AI Toolkit's own code and records the stages.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_qwen_image_edit_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a diffusers folder with a processor; ``model`` is
the pack's name of the model, whose tag AI Toolkit drops. More keys: ``low_vram``, which tiles the autoencoder; of an
item ``control_keys``, under which its control images stand, and ``do_cfg_norm``.

Records initial_noise, pred_cond_step0, pred_step0, final_latents, each [1, 16, 1, h, w], vae_decode_input,
prompt_embeds, negative_embeds, image_uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ai_toolkit_common import Job, PipelineRecorder, import_model, main, model_config

if TYPE_CHECKING:
    import torch


def load_model(job: Job) -> Any:
    arch = job["model"].partition(":")[0]
    config = model_config(job, arch, low_vram=bool(job.get("low_vram")))
    package = import_model("qwen_image")
    made = package.QwenImageEditModel if arch == "qwen_image_edit" else package.QwenImageEditPlusModel
    sd = made(device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"])
    sd.load_model()
    return sd


class EditRecorder(PipelineRecorder):
    def __init__(self, sd: Any) -> None:
        from toolkit.samplers.custom_flowmatch_sampler import CustomFlowMatchEulerDiscreteScheduler

        super().__init__(sd, type(sd.get_generation_pipeline()), CustomFlowMatchEulerDiscreteScheduler)
        self.rows = self.columns = 0  # of the picture's tokens

    def on_pipeline(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.rows, self.columns = kwargs["height"] // 16, kwargs["width"] // 16
        return super().on_pipeline(real, *args, **kwargs)

    def keep(self, name: str, value: torch.Tensor, *, first: bool = False) -> None:
        if value.ndim == 3 and value.shape[1] == self.rows * self.columns and value.shape[2] == 64:
            tokens = value.reshape(1, self.rows, self.columns, 16, 2, 2)
            value = tokens.permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 1, self.rows * 2, self.columns * 2)
        super().keep(name, value, first=first)

    def keep_texts(self, arguments: dict[str, Any]) -> None:
        self.keep("prompt_embeds", arguments["prompt_embeds"])
        self.keep("negative_embeds", arguments["negative_prompt_embeds"])

    def keep_prediction(self, output: Any) -> None:
        # the control images' tokens follow the picture's
        super().keep_prediction(output[0][:, : self.rows * self.columns])


if __name__ == "__main__":
    main(load_model, EditRecorder)
