"""Renders FLUX.2 previews with AI Toolkit's own code, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_flux2_worker.py JOB.json OUT.safetensors

Like ``ai_toolkit_worker.py``, whose helpers it uses, it runs in AI Toolkit's interpreter and imports nothing of this
project. AI Toolkit has a model's sizes and its text encoder's repository in its code; here they are the checkpoint's.

JOB.json:
    model                 "flux2" or "flux2_klein_4b"
    checkpoint            folder with AI Toolkit's files (flux2-dev.safetensors, ae.safetensors, ...), text_encoder and
                          tokenizer
    dtype                 "float32" or "bf16"
    quantize_transformer  null or a qtype
    quantize_te           null or a qtype
    lora                  null or a file of AI Toolkit's
    network               the job's network section that the file was trained with
    items                 prompt, negative_prompt, width, height, seed, steps, guidance, network_multiplier, control: up
                          to three picture files

OUT.safetensors, for item i: `item{i}.` + final_latents and image_uint8. The metadata holds `application`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ai_toolkit_worker import quantized_layers

Job = dict[str, Any]
_FILES = {"flux2": "flux2-dev.safetensors", "flux2_klein_4b": "flux-2-klein-base-4b.safetensors"}


def import_flux2() -> Any:
    """AI Toolkit's flux2 package alone: the one around it imports every other model's libraries."""
    import extensions_built_in

    name = "extensions_built_in.diffusion_models"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(next(iter(extensions_built_in.__path__)), "diffusion_models"))]
    sys.modules[name] = package
    return importlib.import_module(f"{name}.flux2")


def load_model(job: Job, scratch: Path) -> Any:
    """AI Toolkit's model, in the state in which its training process takes previews."""
    from safetensors import safe_open
    from toolkit.config_modules import ModelConfig
    from toolkit.train_tools import get_torch_dtype

    flux2 = import_flux2()
    checkpoint = Path(job["checkpoint"])
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

    config = ModelConfig(
        name_or_path=str(checkpoint),
        arch=job["model"],
        dtype=job["dtype"],
        quantize=bool(job["quantize_transformer"]),
        quantize_te=bool(job["quantize_te"]),
        qtype=job["quantize_transformer"] or job["quantize_te"] or "qfloat8",
        qtype_te=job["quantize_te"] or "qfloat8",
    )
    sd = Tiny(device="cpu", model_config=config, dtype=job["dtype"])
    with patch.object(model, "MISTRAL_PATH", str(scratch)), patch.object(model, "AutoEncoderParams", lambda: vae_sizes):
        sd.load_model()
    dtype = get_torch_dtype(job["dtype"])
    sd.vae.to("cpu", dtype=dtype)
    for part in (sd.model, sd.vae, sd.text_encoder[0]):
        part.requires_grad_(False)
        part.eval()
    for wanted, part in ((job["quantize_transformer"], sd.model), (job["quantize_te"], sd.text_encoder[0])):
        if wanted and quantized_layers(part)[0] == 0:
            raise RuntimeError("AI Toolkit left a part unquantised; its output above says why.")
    return sd


def add_network(sd: Any, path: str, network: dict[str, Any]) -> None:
    """Attaches the file as a network of its kind, as a resumed job does."""
    import torch
    from toolkit.config_modules import NetworkConfig
    from toolkit.lora_special import LoRASpecialNetwork

    config = NetworkConfig(**network)
    built = LoRASpecialNetwork(
        text_encoder=sd.text_encoder,
        unet=sd.get_model_to_train(),
        lora_dim=config.linear,
        multiplier=1.0,
        alpha=config.linear_alpha,
        train_unet=True,
        train_text_encoder=False,
        conv_lora_dim=config.conv,
        conv_alpha=config.conv_alpha,
        dropout=config.dropout,
        network_config=config,
        network_type=config.type,
        transformer_only=config.transformer_only,
        is_transformer=sd.is_transformer,
        base_model=sd,
        target_lin_modules=sd.target_lora_modules,
        **config.network_kwargs,
    )
    built.force_to(sd.device_torch, dtype=torch.float32)
    sd.network = built
    built._update_torch_multiplier()
    built.apply_to(sd.text_encoder, sd.get_model_to_train(), False, True)
    if sd.model_config.quantize:
        built.can_merge_in = False
    built.prepare_grad_etc(sd.text_encoder, sd.get_model_to_train())
    unused = built.load_weights(path)
    if unused:
        raise ValueError(f"{path} does not fit: unused {sorted(unused)}.")


def render(sd: Any, items: list[Job]) -> tuple[list[dict[str, Any]], str]:
    """One preview round, with the images read back from the files that AI Toolkit saves."""
    import numpy as np
    import torch
    from PIL import Image
    from toolkit.config_modules import GenerateImageConfig

    decoded: list[Any] = []
    applications: set[str] = set()
    real = sd.vae.decode

    def decode(latents: Any) -> Any:
        decoded.append(latents.detach().clone())
        network = sd.network
        applications.add("none" if network is None else "merged" if network.is_merged_in else "live")
        return real(latents)

    with tempfile.TemporaryDirectory() as folder, patch.object(sd.vae, "decode", decode):
        paths = [Path(folder, f"item{i}.png") for i in range(len(items))]
        configs = []
        for item, path in zip(items, paths, strict=True):
            names = ("ctrl_img", "ctrl_img_2", "ctrl_img_3")
            configs.append(
                GenerateImageConfig(
                    prompt=item["prompt"],
                    negative_prompt=item["negative_prompt"],
                    width=item["width"],
                    height=item["height"],
                    seed=item["seed"],
                    num_inference_steps=item["steps"],
                    guidance_scale=item["guidance"],
                    network_multiplier=item["network_multiplier"],
                    output_path=str(path),
                    output_ext="png",
                    **dict(zip(names, item.get("control", ()), strict=False)),
                )
            )
        sd.generate_images(configs)
        pictures = []
        for path in paths:
            with Image.open(path) as image:
                pictures.append(torch.from_numpy(np.array(image)))
    stages = [
        {"final_latents": latents, "image_uint8": picture} for latents, picture in zip(decoded, pictures, strict=True)
    ]
    return stages, ", ".join(sorted(applications))


def main(job_path: str, out_path: str) -> None:
    # No look-ups: the checkpoint is a local folder.
    os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="YES", NO_ALBUMENTATIONS_UPDATE="1")
    from safetensors.torch import save_file

    job: Job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        sd = load_model(job, Path(scratch))
        if job.get("lora"):
            add_network(sd, job["lora"], job["network"])
        stages, application = render(sd, job["items"])
    tensors = {f"item{i}.{n}": v.contiguous() for i, found in enumerate(stages) for n, v in found.items()}
    save_file(tensors, out_path, metadata={"application": application})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: ai_toolkit_flux2_worker.py JOB.json OUT.safetensors")
    main(*sys.argv[1:])
