"""Renders Krea 2 previews with AI Toolkit's own code, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_krea2_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a folder with raw.safetensors, text_encoder,
tokenizer and vae; AI Toolkit has one class for krea2 and krea2:turbo, and for both with control images, which
``model_kwargs`` turn on. More keys:
    assistant_lora_path   null or a training adapter, as the turbo presets have one: it is merged into the weights, and
                          a live copy with the multiplier -1 takes it out again in previews
    low_vram              whether the autoencoder decodes in tiles
    model_kwargs          of AI Toolkit's model section, such as {"schedule_mu": 1.15} or {"edit": true}

AI Toolkit has the transformer's sizes in its code; here they are the checkpoint's.

Records initial_noise, pred_cond_step0 and, with guidance, pred_uncond_step0 (for the prompt and the negative one),
prompt_embeds, final_latents and image_uint8.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_toolkit_common import Job, Recorder, Watch, import_model, main, model_config


def load_model(job: Job) -> Any:
    checkpoint, scratch = Path(job["checkpoint"]), Path(job["scratch"])
    # AI Toolkit takes both from one folder
    for part in ("text_encoder", "tokenizer"):
        for file in (checkpoint / part).iterdir():
            shutil.copy(file, scratch / file.name)
    kwargs = {
        "text_encoder_path": str(scratch),
        "vae_path": str(checkpoint),
        "mmdit_config": _sizes(checkpoint / "raw.safetensors"),
        **job.get("model_kwargs", {}),
    }
    config = model_config(
        job | {"checkpoint": str(checkpoint / "raw.safetensors")},
        "krea2",
        assistant_lora_path=job.get("assistant_lora_path"),
        low_vram=bool(job.get("low_vram")),
        model_kwargs=kwargs,
    )
    sd = import_model("krea2").krea2.Krea2Model(
        device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"]
    )
    sd.load_model()
    return sd


def _sizes(file: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (no mapping)
    head = shapes["blocks.0.attn.qknorm.qnorm.scale"][0]
    text = "txtfusion.layerwise_blocks.0.attn"
    text_head = shapes[f"{text}.qknorm.qnorm.scale"][0]
    gates = [shapes[f"{block}.mlp.gate.weight"] for block in ("blocks.0", text.removesuffix(".attn"))]
    return {
        # AI Toolkit's own formula, which rounds up to 128: several may give these widths
        "multiplier": next(n for n in range(1, 9) if all(-(int(2 * w / 3) * n) // 128 * -128 == m for m, w in gates)),
        "features": shapes["first.weight"][0],
        "tdim": shapes["tmlp.0.weight"][1],
        "txtdim": shapes["txtmlp.1.weight"][1],
        "heads": shapes["blocks.0.attn.wq.weight"][0] // head,
        "kvheads": shapes["blocks.0.attn.wk.weight"][0] // head,
        "layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "txtheads": shapes[f"{text}.wq.weight"][0] // text_head,
        "txtkvheads": shapes[f"{text}.wk.weight"][0] // text_head,
    }


class Krea2Recorder(Recorder):
    def __init__(self, sd: Any) -> None:
        super().__init__(sd)
        self._module = import_model("krea2.src.pipeline")

    def watches(self) -> list[Watch]:
        return [
            (self._module.Krea2Pipeline, "__call__", self.on_pipeline),
            (self._module, "predict_velocity", self.on_prediction),
            (self.sd, "decode_latents", self.on_decode),
        ]

    def on_pipeline(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.start()
        self.keep("prompt_embeds", kwargs["conditional_embeds"].text_embeds[0])
        return real(*args, **kwargs)

    def on_prediction(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        self.keep("initial_noise", args[1], first=True)
        name = "pred_uncond_step0" if "pred_cond_step0" in self.items[-1] else "pred_cond_step0"
        self.keep(name, result, first=True)
        return result

    def on_decode(self, real: Callable[..., Any], latents: Any, *args: Any, **kwargs: Any) -> Any:
        # a picture is one frame
        self.keep("final_latents", latents[:, :, None])
        return real(latents, *args, **kwargs)


if __name__ == "__main__":
    main(load_model, Krea2Recorder)
