"""Renders OmniGen2 previews with AI Toolkit's own code and records the stages, as the reference of a side-by-side test.

    PYTHONPATH=<AI Toolkit's checkout> <its python> omnigen2_worker.py JOB.json OUT.safetensors

The script runs in AI Toolkit's interpreter, hence it imports nothing of this project. Model loading, LoRA network,
prompt encoding, sampling and saving are AI Toolkit's; here they are only called in the order of its training process,
and watched.

JOB.json:
    checkpoint            folder of the checkpoint
    dtype                 "float32" or "bf16"
    quantize_transformer  null or a qtype, such as "qfloat8" or "qint8"
    quantize_te           null or a qtype
    lora                  null or a LoRA file, one rank throughout
    device                optional, "cpu" by default
    items                 the preview round: prompt, negative_prompt, width, height, seed, steps, guidance,
                          network_multiplier, and optionally control, the path of an image; AI Toolkit merges the LoRA
                          where all multipliers are equal and the transformer is not quantised, else it runs live

OUT.safetensors, for item i: `item{i}.` + initial_noise, pred_cond_step0 (raw output for the prompt), pred_step0 (what
the scheduler gets), final_latents, vae_decode_input, prompt_embeds, negative_embeds, ref_latents (where there is an
image), image_uint8. The metadata holds package versions, `application` (none, live or merged) and how many linear
layers were quantised.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import tempfile
import types
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


def import_model() -> types.ModuleType:
    """AI Toolkit's package for this model, without running the one around it, which imports every other model."""
    spec = importlib.util.find_spec("extensions_built_in")
    assert spec is not None and spec.submodule_search_locations
    name = "extensions_built_in.diffusion_models"
    around = types.ModuleType(name)
    around.__path__ = [str(Path(spec.submodule_search_locations[0], "diffusion_models"))]
    sys.modules[name] = around
    return importlib.import_module(f"{name}.omnigen2")


def like_numpy_1() -> None:
    """Makes the schedule what it is under NumPy 1, which AI Toolkit pins.

    A float64 scalar does not widen a float32 array there; since NumPy 2 only a Python number does not.
    """
    import numpy as np

    module = importlib.import_module(
        "extensions_built_in.diffusion_models.omnigen2.src.schedulers.scheduling_flow_match_euler_discrete"
    )
    module.np = types.SimpleNamespace(
        linspace=np.linspace, float32=np.float32, sqrt=lambda value: float(np.sqrt(value))
    )


def load_model(job: Job) -> Any:
    """AI Toolkit's model, in the state in which its training process takes previews."""
    from toolkit.config_modules import ModelConfig
    from toolkit.train_tools import get_torch_dtype

    model_class = import_model().OmniGen2Model
    like_numpy_1()
    config = ModelConfig(
        name_or_path=job["checkpoint"],
        arch="omnigen2",
        dtype=job["dtype"],
        quantize=bool(job.get("quantize_transformer")),
        quantize_te=bool(job.get("quantize_te")),
        qtype=job.get("quantize_transformer") or "qfloat8",
        qtype_te=job.get("quantize_te") or "qfloat8",
    )
    sd = model_class(device=job.get("device", "cpu"), model_config=config, dtype=job["dtype"])
    sd.load_model()
    dtype = get_torch_dtype(job["dtype"])
    sd.unet.to(sd.device_torch, dtype=dtype)
    for part in (sd.unet, sd.vae, sd.text_encoder[0]):
        part.requires_grad_(False)
        part.eval()
    for name, part in (("transformer", sd.unet), ("te", sd.text_encoder[0])):
        # A layer that fails to quantise is only printed by AI Toolkit.
        if job.get(f"quantize_{name}") and quantized_layers(part)[0] == 0:
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
        ranks = {
            key.removesuffix(suffix).replace("diffusion_model.", "transformer."): file.get_slice(key).get_shape()[0]
            for key in keys
            if key.endswith(suffix)
        }
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
        dropout=config.dropout,
        network_config=config,
        network_type=config.type,
        transformer_only=config.transformer_only,
        is_transformer=sd.is_transformer,
        base_model=sd,
        target_lin_modules=sd.target_lora_modules,
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
        pipeline = type(self.sd.pipeline)
        scheduler = type(self.sd.get_generation_pipeline().scheduler)

        def watched(real: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
            return functools.wraps(real)(lambda *args, **kwargs: wrapper(real, *args, **kwargs))

        with ExitStack() as stack:
            for owner, name, wrapper in (
                (pipeline, "__call__", self.on_pipeline),
                (pipeline, "encode_vae", self.on_encode),
                (scheduler, "step", self.on_step),
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
        self.keep("negative_embeds", kwargs["negative_prompt_embeds"])
        return real(*args, **kwargs)

    def on_encode(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        latents = real(*args, **kwargs)
        self.keep("ref_latents", latents[0])
        return latents

    def on_prediction(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.keep("pred_cond_step0", output, first=True)  # the prompt's pass comes before the negative one

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
                ctrl_img=item.get("control"),
                output_path=str(path),
                output_ext="png",
            )
            for item, path in zip(items, paths, strict=True)
        ]
        with recorder.watching():
            sd.generate_images(configs)
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
    for name, part in (("transformer", sd.unet), ("text_encoder", sd.text_encoder[0])):
        metadata[f"quantized_{name}"] = "{} of {}".format(*quantized_layers(part))
    save_file(tensors, out_path, metadata=metadata)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: omnigen2_worker.py JOB.json OUT.safetensors")
    main(*sys.argv[1:])
