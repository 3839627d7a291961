"""ai-toolkit-inference as a side: its ComfyUI node for the model, and the loader that its nodes share.

This runs with its checkout on the path, in an interpreter that has its requirements.
"""
# basedpyright runs without that checkout
# pyright: reportMissingImports=false

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..measure import Stopwatch, touched
from ..sides import Loras, empty_cache

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..subject import Setting

_NODES = {"lumina2": "RCLumina2"}


class Inference:
    """What the node does when it is queued; where it loads, the loading is done ahead, to be timed alone."""

    def __init__(self, setting: Setting) -> None:
        self.watch = Stopwatch(setting.device)
        self._setting = setting
        self._node: Any = None
        self._loras = Loras()

    def load(self) -> None:
        self._node = _node(self._setting)
        self._bring()

    def set_loras(self, loras: Loras) -> None:
        self._loras = loras
        self._bring()

    def picture(self, seed: int, prompt: str, steps: int = 0) -> torch.Tensor:
        import torch

        one = self._setting
        with self.watch.on(self.denoiser()):
            (images,) = self._node.generate(
                prompt=prompt,
                width=one.size,
                height=one.size,
                sample_steps=steps or one.steps,
                guidance_scale=one.guidance,
                seed=seed,
                lora_path=", ".join(self._paths()),
                lora_scale=self._loras.strength,
            )
        return (images[0] * 255).round().to(torch.uint8)

    def denoiser(self) -> nn.Module:
        return self._bring().pipe.transformer

    def release(self) -> None:
        from comfyui_nodes import rc_common

        # as its loader gives up a pipeline for another one
        rc_common._PIPELINE_CACHE["instance"].unload()
        rc_common._PIPELINE_CACHE.update(instance=None, key=None)
        self._node, self._loras = None, Loras()
        self.watch.calls.clear()
        gc.collect()
        empty_cache(self._setting.device)

    def counters(self) -> dict[str, int]:
        return {}

    def _bring(self) -> Any:
        """The loaded pipeline with the LoRA; the node's next call, which asks for the same, finds it."""
        from comfyui_nodes import rc_common

        before = rc_common._PIPELINE_CACHE["instance"]
        node = self._node
        pipeline = rc_common.get_or_load_pipeline(
            model_id=node.MODEL_ID,
            pipeline_ctor=node._pipeline_ctor(),
            offload_mode=node.DEFAULT_OFFLOAD_MODE,
            hf_token=None,
            lora_paths=self._paths(),
            lora_scale=self._loras.strength,
        )
        if pipeline is not before:
            for part in (pipeline.pipe.transformer, pipeline.pipe.text_encoder, pipeline.pipe.vae):
                touched(part)
        return pipeline

    def _paths(self) -> list[str]:
        return [str(self._setting.lora_files[number]) for number in self._loras.numbers]


def _node(setting: Setting) -> Any:
    """The model's node, whose pipeline reads the setting's checkpoint, on its device.

    Its loader asks for CUDA, and off it the pipeline would run in float32; here it runs in bfloat16 as it does there.
    """
    import comfyui_nodes
    import torch

    theirs: Any = getattr(comfyui_nodes, _NODES[setting.model])
    base: Any = theirs()._pipeline_ctor()

    class Pipeline(base):
        CONFIG = replace(base.CONFIG, base_model=str(setting.checkpoint))

        def __init__(self, device: str, **options: Any) -> None:
            super().__init__(device=setting.device, **options)
            self.dtype = torch.bfloat16

    class Node(theirs):
        def _pipeline_ctor(self) -> type:
            return Pipeline

    return Node()
