"""AI Toolkit's own previews, recorded on a tiny checkpoint, against the ``trainer preview`` recipe.

Two recordings: with transformers 5.23, where Gemma2 soft-caps its attention logits, and with 5.5.3, which AI Toolkit
pins and where it does not (``pinned``).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.handle import PipelineHandle
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.models.lumina2 import loop
from comfyui_aitk.pipelines.observer import SilentObserver
from comfyui_aitk.pipelines.options import Chosen, RuntimeOptions
from comfyui_aitk.pipelines.pictures.sizes import Size
from comfyui_aitk.pipelines.run.start import seeded
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint
from cpu_kernels import NOISE
from PIL import Image
from rendering import denoising, job_of, wanted
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("kept_engine")

# largest absolute differences on another CPU, from the recordings' own page; an order above the measured spread
EMBEDS, PREDICTION, LATENTS, SIGMAS = 1e-4, 5e-5, 5e-5, 1e-6
PIXEL_LEVELS, PIXEL_SHARE = 1, 0.01
GOLDEN = Path(__file__).parent.parent / "golden" / "lumina2"
ATTENTION = {".": "softcap", "pinned": "auto"}


def _cases() -> list:
    return [
        pytest.param(folder, case, id=f"{folder}/{case['name']}".removeprefix("./"))
        for folder in ATTENTION
        for case in json.loads((GOLDEN / folder / "index.json").read_text())["cases"]
    ]


def _graph(folder: str, case: dict) -> dict:
    """The case as a graph of the pack's nodes, in the API's format."""
    quantization = "qfloat8" if case.get("model_config", {}).get("quantize_te") else "none"
    graph = {
        "options": _node(
            "AITKRuntimeOptions",
            transformer_quantization="none",
            text_encoder_quantization=quantization,
            text_encoder_attention=ATTENTION[folder],
        ),
        "load": _node("LoadAITKModel", model="lumina2", weights="base", dtype="float32", options=["options", 0]),
        "sample": _node(
            "AITKSampler",
            pipeline=["load", 0],
            prompt=case["prompt"],
            negative_prompt=case["negative_prompt"],
            width=case["width"],
            height=case["height"],
            steps=case["steps"],
            guidance_scale=case["guidance"],
            seed=case["seed"],
            recipe="trainer preview",
            trigger_word="",
            system_prompt="",
            batch_size=1,
        ),
        "save": _node(
            "AITKSaveImage", images=["sample", 0], report=["sample", 6], filename_prefix="case", format="png"
        ),
    }
    if case["lora"]:
        application = "live" if case.get("application") == "live" else "auto"
        graph["lora"] = _node(
            "ApplyAITKLoRA",
            pipeline=["load", 0],
            lora_name=Path(case["lora"]).name,
            strength=case["lora_multiplier"],
            application=application,
        )
        graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    return graph


def _node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def golden_host(host, tmp_path):
    extra = {"diffusers": GOLDEN / "base", "loras": GOLDEN / "lora" / "lora_f32.safetensors"}
    plain = PlainHost(tmp_path, tmp_path, tmp_path / "output", "cpu", extra)
    use_host(plain)
    return plain


@pytest.mark.parametrize(("folder", "case"), _cases())
def test_nodes_give_the_recorded_picture(folder, case, golden_host):
    recorded = load_file(GOLDEN / folder / case["tensors"])
    result = run_prompt(_graph(folder, case), NODE_CLASS_MAPPINGS)

    latent = (result.results["sample"][4]["samples"] - 0.1159) * 0.3611
    assert _distance(latent, recorded["final_latents"]) < LATENTS
    (picture,) = (golden_host.output).glob("case_*.png")
    difference = np.abs(np.asarray(Image.open(picture)).astype(int) - recorded["image_uint8"].numpy().astype(int))
    assert difference.max() <= PIXEL_LEVELS
    assert (difference > 0).mean() < PIXEL_SHARE


@pytest.mark.parametrize(("folder", "case"), [c for c in _cases() if c.values[1]["kind"] == "txt2img"])
def test_every_stage_agrees(folder, case, engine):
    model = find_model("lumina2")
    recorded = load_file(GOLDEN / folder / case["tensors"])
    embeds = load_file(GOLDEN / folder / "embeds.safetensors")
    options = RuntimeOptions(own=Chosen.of({"text_encoder_attention": ATTENTION[folder]}))
    handle = PipelineHandle("lumina2", Checkpoint.open(GOLDEN / "base", "base", model.files), "float32", options)
    asked, size = wanted(engine, handle), Size(case["width"], case["height"])
    job = job_of(handle, case, size)
    with torch.no_grad():
        conditioning = engine.embeddings(asked, asked.model.texts(job), SilentObserver())
        for embedding, name in zip(conditioning, ("prompt", "negative"), strict=False):
            mask = embeds[case["embeds"][f"{name}_mask"]]
            assert torch.equal(embedding.mask, mask)
            # rows behind the mask depend on the attention's implementation, and the transformer leaves them out
            tokens = mask.bool()
            assert _distance(embedding.embeds[tokens], embeds[case["embeds"][f"{name}_embeds"]][tokens]) < EMBEDS

        noise = asked.model.noise(seeded("cpu", case["seed"]), job)
        assert _distance(noise, recorded["initial_noise"]) <= NOISE
        schedule = asked.model.schedule(job, case["steps"])
        sigmas = schedule.sigmas
        assert _distance(sigmas, recorded["sigmas"]) < SIGMAS
        time = loop.model_time(sigmas[0])
        assert _distance(time, recorded["model_timestep_step0"]) < SIGMAS

        picture = denoising(job, noise, schedule, conditioning)
        with engine.on_device(asked, "transformer", SilentObserver()) as transformer:
            prediction = loop.predict(transformer, noise, time, picture)
    assert _distance(prediction.cond, recorded["pred_cond_step0"]) < PREDICTION
    assert (prediction.uncond is None) == ("pred_uncond_step0" not in recorded)
    if prediction.uncond is not None:
        assert _distance(prediction.uncond, recorded["pred_uncond_step0"]) < PREDICTION
    assert _distance(-prediction.guided, recorded["pred_step0"]) < PREDICTION


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [Size(64, 64), Size(96, 64)], ids=lambda size: f"{size.width}x{size.height}")
def test_noise_is_drawn_in_the_dtype_of_the_run(engine, dtype, size):
    recorded = load_file(GOLDEN / "noise.safetensors")[f"noise_{size.width}x{size.height}_{dtype}"]
    base = Checkpoint.open(GOLDEN / "base", "base", find_model("lumina2").files)
    handle = PipelineHandle("lumina2", base, dtype)
    job = job_of(handle, {"guidance": 1.0, "prompt": "", "negative_prompt": ""}, size)
    noise = engine.model(handle).noise(seeded("cpu", 42), job)
    assert noise.dtype == recorded.dtype
    # a value on the edge between two of 16 bits may be the other one
    edge = torch.finfo(noise.dtype).eps * recorded.float().abs() if NOISE else 0
    assert ((noise.float() - recorded.float()).abs() <= NOISE + edge).all()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())
