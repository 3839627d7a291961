"""Renders Lumina2 previews with AI Toolkit's own code and records the stages, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> ai_toolkit_worker.py JOB.json OUT.safetensors

The script runs in AI Toolkit's interpreter, hence it imports nothing of this project. Model loading, LoRA network,
prompt encoding, sampling and saving are AI Toolkit's; here they are only called in the order of its training process,
and watched.

JOB.json:
    checkpoint            folder of the diffusers checkpoint
    dtype                 "float32" or "bf16"
    quantize_transformer  null or a qtype, such as "qfloat8" or "qint8"
    quantize_te           null or a qtype; where both are given they must be equal (AI Toolkit has one for Lumina2)
    lora                  null or a LoRA file, one rank throughout
    device                optional, "cpu" by default
    items                 the preview round: prompt, negative_prompt, width, height, seed, steps, guidance,
                          network_multiplier; AI Toolkit merges the LoRA where all multipliers are equal and nothing
                          but the text encoder is quantised, else it runs live

OUT.safetensors, for item i: `item{i}.` + initial_noise, pred_cond_step0 (raw output for the prompt), pred_step0 (what
the scheduler gets), final_latents, vae_decode_input, prompt_embeds, prompt_mask, negative_embeds, negative_mask,
image_uint8. The metadata holds package versions, `application` (none, live or merged) and how many linear layers were
quantised.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import torch

Job = dict[str, Any]
Stages = dict[str, "torch.Tensor"]

PACKAGES = ("torch", "diffusers", "transformers", "optimum-quanto", "torchao", "peft", "numpy", "pillow")


def load_model(job: Job) -> Any:
    """AI Toolkit's model, in the state in which its training process takes previews."""
    from toolkit.config_modules import ModelConfig
    from toolkit.sampler import get_sampler
    from toolkit.stable_diffusion_model import StableDiffusion
    from toolkit.train_tools import get_torch_dtype

    wanted = {"transformer": job.get("quantize_transformer"), "text encoder": job.get("quantize_te")}
    qtypes = {qtype for qtype in wanted.values() if qtype}
    if len(qtypes) > 1:
        raise ValueError(f"AI Toolkit quantises both parts of Lumina2 with one type, not with {sorted(qtypes)}.")
    qtype = qtypes.pop() if qtypes else "qfloat8"
    config = ModelConfig(
        name_or_path=job["checkpoint"],
        arch="lumina2",
        dtype=job["dtype"],
        quantize=bool(wanted["transformer"]),
        quantize_te=bool(wanted["text encoder"]),
        qtype=qtype,
        qtype_te=qtype,
    )
    sd = StableDiffusion(
        device=job.get("device", "cpu"),
        model_config=config,
        dtype=job["dtype"],
        noise_scheduler=get_sampler("flowmatch", {"prediction_type": "epsilon"}, arch="lumina2"),
    )
    sd.load_model()

    dtype = get_torch_dtype(job["dtype"])
    sd.unet.to(sd.device_torch, dtype=dtype)
    sd.vae.to("cpu", dtype=dtype)
    for part in (sd.unet, sd.vae, sd.text_encoder):
        part.requires_grad_(False)
        part.eval()
    for name, part in (("transformer", sd.unet), ("text encoder", sd.text_encoder)):
        # A layer that fails to quantise is only printed by AI Toolkit.
        if wanted[name] and quantized_layers(part)[0] == 0:
            raise RuntimeError(f"AI Toolkit left the {name} unquantised; its output above says why.")
    return sd


def quantized_layers(model: torch.nn.Module) -> tuple[int, int]:
    """How many linear layers hold quantised weights, and how many there are."""
    import torch

    def plain(layer: torch.nn.Linear) -> bool:
        return type(layer) is torch.nn.Linear and type(layer.weight.data) is torch.Tensor

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return sum(not plain(layer) for layer in layers), len(layers)


def add_network(sd: Any, path: str) -> None:
    """Attach the LoRA file as a network that trains just the layers the file names."""
    import torch
    from safetensors import safe_open
    from toolkit.config_modules import NetworkConfig
    from toolkit.lora_special import LoRASpecialNetwork

    suffix = ".lora_A.weight"
    with safe_open(path, framework="pt") as file:
        keys = file.keys()
        ranks = {key.removesuffix(suffix): file.get_slice(key).get_shape()[0] for key in keys if key.endswith(suffix)}
    if len(set(ranks.values())) != 1:
        raise ValueError(f"{path}: one rank expected, found {sorted(set(ranks.values()))}.")
    rank = next(iter(ranks.values()))

    config = NetworkConfig(type="lora", linear=rank, linear_alpha=rank)
    network = LoRASpecialNetwork(
        text_encoder=sd.text_encoder,
        unet=sd.get_model_to_train(),
        lora_dim=config.linear,
        multiplier=1.0,
        alpha=config.linear_alpha,
        train_unet=True,
        train_text_encoder=False,
        conv_lora_dim=config.conv,
        conv_alpha=config.conv_alpha,
        is_lumina2=sd.is_lumina2,
        dropout=config.dropout,
        network_config=config,
        network_type=config.type,
        transformer_only=config.transformer_only,
        is_transformer=sd.is_transformer,
        base_model=sd,
        only_if_contains=list(ranks),
    )
    network.force_to(sd.device_torch, dtype=torch.float32)
    sd.network = network
    network._update_torch_multiplier()
    network.apply_to(sd.text_encoder, sd.unet, False, True)
    if sd.model_config.quantize:
        network.can_merge_in = False
    network.prepare_grad_etc(sd.text_encoder, sd.unet)

    unused = network.load_weights(path)
    network.multiplier = 1.0
    built = {module.lora_name.replace("$$", ".") for module in network.get_all_modules()}
    if unused or built != set(ranks):
        raise ValueError(f"{path} does not fit: unused {sorted(unused or ())}, layers {sorted(built ^ set(ranks))}.")


class Recorder:
    """Copies what passes by during a preview round; every call goes on unchanged."""

    def __init__(self, sd: Any) -> None:
        self.sd = sd
        self.items: list[Stages] = []
        self.application = "none"

    def keep(self, name: str, value: torch.Tensor, *, first: bool = False) -> None:
        if not (first and name in self.items[-1]):
            self.items[-1][name] = value.detach().to("cpu", copy=True).contiguous()

    @contextmanager
    def watching(self) -> Iterator[None]:
        from diffusers import Lumina2Pipeline
        from toolkit.samplers.custom_flowmatch_sampler import CustomFlowMatchEulerDiscreteScheduler

        def watched(real: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
            return functools.wraps(real)(lambda *args, **kwargs: wrapper(real, *args, **kwargs))

        with ExitStack() as stack:
            for owner, name, wrapper in (
                (Lumina2Pipeline, "__call__", self.on_pipeline),
                (CustomFlowMatchEulerDiscreteScheduler, "step", self.on_step),
                (self.sd.vae, "decode", self.on_decode),
            ):
                stack.enter_context(patch.object(owner, name, watched(getattr(owner, name), wrapper)))
            hook = self.sd.unet.register_forward_hook(self.on_prediction)
            stack.callback(hook.remove)
            yield

    def on_pipeline(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.items.append({})
        if self.sd.network is not None:
            self.application = "merged" if self.sd.network.is_merged_in else "live"
        self.keep("prompt_embeds", kwargs["prompt_embeds"])
        self.keep("prompt_mask", kwargs["prompt_attention_mask"])
        self.keep("negative_embeds", kwargs["negative_prompt_embeds"])
        self.keep("negative_mask", kwargs["negative_prompt_attention_mask"])
        return real(*args, **kwargs)

    def on_prediction(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.keep("pred_cond_step0", output[0], first=True)  # the prompt's pass comes before the negative one

    def on_step(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _scheduler, prediction, _timestep, latents = args
        self.keep("initial_noise", latents, first=True)
        self.keep("pred_step0", prediction, first=True)
        result = real(*args, **kwargs)
        self.keep("final_latents", result[0])
        return result

    def on_decode(self, real: Callable[..., Any], latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.keep("vae_decode_input", latents)
        return real(latents, *args, **kwargs)


def render(sd: Any, items: list[Job]) -> Recorder:
    """One preview round, with the images read back from the files that AI Toolkit saves."""
    import numpy as np
    import torch
    from PIL import Image
    from toolkit.config_modules import GenerateImageConfig

    recorder = Recorder(sd)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"item{i}.png") for i in range(len(items))]
        configs = [
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
            )
            for item, path in zip(items, paths, strict=True)
        ]
        with recorder.watching():
            sd.generate_images(configs, sampler="flowmatch")
        for stages, path in zip(recorder.items, paths, strict=True):
            with Image.open(path) as image:
                stages["image_uint8"] = torch.from_numpy(np.array(image))
    return recorder


def main(job_path: str, out_path: str) -> None:
    # No look-ups: the checkpoint is a local folder.
    os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="YES", NO_ALBUMENTATIONS_UPDATE="1")
    from safetensors.torch import save_file
    from version import VERSION

    job: Job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    sd = load_model(job)
    if job.get("lora"):
        add_network(sd, job["lora"])
    recorder = render(sd, job["items"])

    tensors = {f"item{i}.{name}": value for i, stages in enumerate(recorder.items) for name, value in stages.items()}
    metadata = {name: version(name) for name in PACKAGES} | {"ai-toolkit": VERSION, "application": recorder.application}
    for name, part in (("transformer", sd.unet), ("text_encoder", sd.text_encoder)):
        metadata[f"quantized_{name}"] = "{} of {}".format(*quantized_layers(part))
    save_file(tensors, out_path, metadata=metadata)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: ai_toolkit_worker.py JOB.json OUT.safetensors")
    main(*sys.argv[1:])
