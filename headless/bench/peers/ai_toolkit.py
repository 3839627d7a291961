"""AI Toolkit's previews as a side: its model class, its network for the LoRA, and its round of sample pictures.

This runs in AI Toolkit's interpreter, with its checkout on the path.
"""
# basedpyright runs without that checkout
# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure import Stopwatch, touched
from ..sides import Loras, empty_cache

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..subject import Setting

_DTYPE = "bf16"
_SAMPLER = "flowmatch"


class AIToolkit:
    """What a training job with one network does when it takes a preview."""

    def __init__(self, setting: Setting) -> None:
        self.watch = Stopwatch(setting.device)
        self._setting = setting
        self._sd: Any = None
        self._loras = Loras()

    def load(self) -> None:
        from toolkit.config_modules import ModelConfig
        from toolkit.sampler import get_sampler
        from toolkit.stable_diffusion_model import StableDiffusion
        from toolkit.train_tools import get_torch_dtype

        one, dtype = self._setting, get_torch_dtype(_DTYPE)
        arch = one.model
        self._sd = sd = StableDiffusion(
            device=one.device,
            model_config=ModelConfig(name_or_path=str(one.checkpoint), arch=arch, dtype=_DTYPE),
            dtype=_DTYPE,
            noise_scheduler=get_sampler(_SAMPLER, {"prediction_type": "epsilon"}, arch=arch),
        )
        sd.load_model()
        # as its training process leaves them: the autoencoder waits beside the device until a preview is due
        sd.unet.to(sd.device_torch, dtype=dtype)
        sd.vae.to("cpu", dtype=dtype)
        for part in (sd.unet, sd.vae, sd.text_encoder):
            part.requires_grad_(False)
            part.eval()
            touched(part)

    def set_loras(self, loras: Loras) -> None:
        if loras.numbers != self._loras.numbers:
            if self._loras.numbers:
                self.release()
                self.load()
            for number in loras.numbers:
                self._add_network(self._setting.lora_files[number])
        self._loras = loras

    def picture(self, seed: int, prompt: str, steps: int = 0) -> torch.Tensor:
        import numpy as np
        import torch
        from PIL import Image
        from toolkit.config_modules import GenerateImageConfig

        one = self._setting
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "preview.png")
            config = GenerateImageConfig(
                prompt=prompt,
                width=one.size,
                height=one.size,
                seed=seed,
                num_inference_steps=steps or one.steps,
                guidance_scale=one.guidance,
                network_multiplier=self._loras.strength,
                output_path=str(path),
                output_ext="png",
            )
            with self.watch.on(self.denoiser()):
                self._sd.generate_images([config], sampler=_SAMPLER)
            with Image.open(path) as image:
                return torch.from_numpy(np.array(image))

    def denoiser(self) -> nn.Module:
        return self._sd.unet

    def release(self) -> None:
        self._sd, self._loras = None, Loras()
        self.watch.calls.clear()
        gc.collect()
        empty_cache(self._setting.device)

    def counters(self) -> dict[str, int]:
        return {}

    def _add_network(self, path: Path) -> None:
        """As a job does that goes on training the file; raises ValueError where it trains other layers."""
        import torch
        from safetensors import safe_open
        from toolkit.config_modules import NetworkConfig
        from toolkit.lora_special import LoRASpecialNetwork

        with safe_open(path, framework="pt") as file:
            downs = [key for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118 (no mapping)
            rank = file.get_slice(downs[0]).get_shape()[0]
        sd = self._sd
        config = NetworkConfig(type="lora", linear=rank, linear_alpha=rank)
        network = LoRASpecialNetwork(
            text_encoder=sd.text_encoder,
            unet=sd.get_model_to_train(),
            lora_dim=config.linear,
            alpha=config.linear_alpha,
            train_unet=True,
            train_text_encoder=False,
            is_lumina2=sd.model_config.is_lumina2,
            network_config=config,
            network_type=config.type,
            transformer_only=config.transformer_only,
            is_transformer=sd.is_transformer,
            base_model=sd,
        )
        network.force_to(sd.device_torch, dtype=torch.float32)
        sd.network = network
        network._update_torch_multiplier()
        network.apply_to(sd.text_encoder, sd.unet, False, True)
        network.prepare_grad_etc(sd.text_encoder, sd.unet)
        unused = network.load_weights(str(path))
        trained = len(network.get_all_modules())
        if unused or trained != len(downs):
            raise ValueError(f"{path.name} has {len(downs)} layers, AI Toolkit trains {trained}; unused: {unused}.")
