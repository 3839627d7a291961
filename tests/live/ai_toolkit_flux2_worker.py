"""Renders FLUX.2 previews with AI Toolkit's own code, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_flux2_worker.py JOB.json OUT.safetensors

``ai_toolkit_common`` says what JOB.json holds. Here the checkpoint is a folder with AI Toolkit's files
(flux2-dev.safetensors, ae.safetensors, ...), text_encoder and tokenizer. One more key:
    model                 "flux2", whose two parts AI Toolkit quantises with one type, or "flux2_klein_4b"

AI Toolkit has a model's sizes and its text encoder's repository in its code; here they are the checkpoint's.

Records final_latents and image_uint8.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ai_toolkit_common import Job, Recorder, Watch, check_one_qtype, import_model, main, model_config

_FILES = {"flux2": "flux2-dev.safetensors", "flux2_klein_4b": "flux-2-klein-base-4b.safetensors"}


def load_model(job: Job) -> Any:
    from safetensors import safe_open

    if job["model"] == "flux2":
        check_one_qtype(job)
    flux2 = import_model("flux2")
    checkpoint, scratch = Path(job["checkpoint"]), Path(job["scratch"])
    for part in ("text_encoder", "tokenizer"):
        for file in (checkpoint / part).iterdir():
            shutil.copy(file, scratch / file.name)
    model, klein = flux2.flux2_model, flux2.flux2_klein_model
    with safe_open(checkpoint / _FILES[job["model"]], "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    with safe_open(checkpoint / "ae.safetensors", "pt") as file:
        vae = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    hidden, head = shapes["img_in.weight"][0], shapes["single_blocks.0.norm.query_norm.scale"][0]

    def count(names: Any, start: str, level: int) -> int:
        return len({name.split(".")[level] for name in names if name.startswith(start)})

    sizes = model.Flux2Params(
        context_in_dim=shapes["txt_in.weight"][1],
        hidden_size=hidden,
        num_heads=hidden // head,
        depth=count(shapes, "double_blocks.", 1),
        depth_single_blocks=count(shapes, "single_blocks.", 1),
        axes_dim=[head // 4] * 4,
        use_guidance_embed="guidance_in.in_layer.weight" in shapes,
    )
    width = vae["encoder.conv_in.weight"][0]
    levels = count(vae, "encoder.down.", 2)
    vae_sizes = model.AutoEncoderParams(
        ch=width,
        ch_mult=[vae[f"encoder.down.{level}.block.0.conv1.weight"][0] // width for level in range(levels)],
        num_res_blocks=count(vae, "encoder.down.0.block.", 4),
        z_channels=vae["decoder.conv_in.weight"][1],
    )
    base = model.Flux2Model if job["model"] == "flux2" else klein.Flux2Klein4BModel

    class Tiny(base):
        flux2_klein_te_path = str(scratch)

        def get_flux2_params(self) -> Any:
            return sizes

    sd = Tiny(device=job.get("device", "cpu"), model_config=model_config(job, job["model"]), dtype=job["dtype"])
    with patch.object(model, "MISTRAL_PATH", str(scratch)), patch.object(model, "AutoEncoderParams", lambda: vae_sizes):
        sd.load_model()
    return sd


class Flux2Recorder(Recorder):
    def watches(self) -> list[Watch]:
        return [(self.sd.vae, "decode", self.on_decode)]

    def on_decode(self, real: Callable[..., Any], latents: Any, *args: Any, **kwargs: Any) -> Any:
        self.start()
        self.keep("final_latents", latents)
        return real(latents, *args, **kwargs)


if __name__ == "__main__":
    main(load_model, Flux2Recorder)
