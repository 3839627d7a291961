"""The ``reference pipeline`` recipe against diffusers' Lumina2Pipeline, called as the model page says: the same pixels.

Shift 6.0, 256 tokens, LoRA through load_lora_weights and set_adapters, and the same attention variant on both sides.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny.lumina2 import make_lora
from comfyui_aitk.pipelines.files.header import FileStamp
from comfyui_aitk.pipelines.handle import LoraSpec, PipelineHandle
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.run.request import SampleRequest
from comfyui_aitk.pipelines.run.sample import sample
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _diffusers(folder, dtype: str, softcap: bool) -> Lumina2Pipeline:
    pipeline = Lumina2Pipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype])
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipeline.set_progress_bar_config(disable=True)
    # what a plain encoder does depends on the version of transformers
    encoder = pipeline.text_encoder
    encoder.config._attn_implementation = "eager" if softcap else "sdpa"
    for layer in encoder.layers:
        layer.self_attn.attn_logit_softcapping = encoder.config.attn_logit_softcapping if softcap else None
    return pipeline


def _picture(pipeline: Lumina2Pipeline, **call: object) -> np.ndarray:
    seed = call.pop("seed")
    image = pipeline(**call, max_sequence_length=256, generator=torch.Generator().manual_seed(seed)).images[0]
    return np.asarray(image)


def _ours(engine, handle, request: SampleRequest) -> np.ndarray:
    image = sample(engine, handle, request, SilentObserver()).images[0]
    return (image * 255).round().to(torch.uint8).numpy()


GUIDED = {"width": 64, "height": 96, "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 7}
UNGUIDED = {"width": 128, "height": 64, "num_inference_steps": 5, "guidance_scale": 1.0, "seed": 0}
TEXTS = {
    "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 6.5, "seed": 2**53,
    "negative_prompt": "blurry", "system_prompt": "Draw.",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("attention", "call"),
    [("auto", GUIDED), ("softcap", GUIDED), ("auto", UNGUIDED), ("auto", TEXTS)],
    ids=["guided", "guided, softcap", "unguided", "negative and system prompt"],
)
def test_same_pixels_as_diffusers(engine, checkpoint, dtype, attention, call):
    own = Chosen.of({"text_encoder_attention": attention})
    handle = PipelineHandle("lumina2", checkpoint, dtype, RuntimeOptions(own=own))
    request = SampleRequest(
        "reference pipeline",
        "a red fox",
        call.get("negative_prompt", ""),
        call["width"],
        call["height"],
        call["num_inference_steps"],
        call["guidance_scale"],
        call["seed"],
        system_prompt=call.get("system_prompt", ""),
    )
    theirs = _picture(
        _diffusers(checkpoint.source("transformer").folder, dtype, attention == "softcap"), prompt="a red fox", **call
    )
    assert np.array_equal(_ours(engine, handle, request), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_pixels_as_diffusers_with_a_stack_of_loras(engine, checkpoint, dtype, tmp_path):
    files = {
        "first": (
            make_lora(tmp_path / "first.safetensors", checkpoint.source("transformer").folder, rank=3, seed=1),
            0.7,
        ),
        "second": (
            make_lora(
                tmp_path / "second.safetensors",
                checkpoint.source("transformer").folder,
                rank=5,
                seed=2,
                dtype=torch.float32,
                only=["attn"],
            ),
            -0.4,
        ),
    }
    pipeline = _diffusers(checkpoint.source("transformer").folder, dtype, softcap=False)
    handle = PipelineHandle("lumina2", checkpoint, dtype)
    for name, (path, strength) in files.items():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        handle = handle.with_lora(LoraSpec(path.name, FileStamp.of(path), strength))
    pipeline.set_adapters(list(files), [strength for _, strength in files.values()])
    request = SampleRequest("reference pipeline", "a cat", width=64, height=64, steps=3, seed=11)
    call = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 11}

    theirs = _picture(pipeline, prompt="a cat", **call)
    assert np.array_equal(_ours(engine, handle, request), theirs)
    pipeline.disable_lora()
    assert not np.array_equal(_picture(pipeline, prompt="a cat", **call), theirs), "the LoRAs change nothing"
