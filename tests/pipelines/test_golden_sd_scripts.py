"""sd-scripts' own pictures, recorded on tiny files in its layout, against the ``sd-scripts`` recipe.

Recorded with ``lumina_minimal_inference.py`` itself in float32, under the versions that it pins.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.nodes.sampler import engine as node_engine
from comfyui_aitk.pipelines.models.runtime import Text
from PIL import Image
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent.parent / "golden" / "lumina2_sd_scripts"
INDEX = json.loads((GOLDEN / "index.json").read_text())
# largest absolute differences. The recording's own page allows ten times as much; measured here: 0 to 4e-6
EMBEDS, PREDICTION, LATENTS, SIGMAS = 1e-5, 1e-5, 1e-5, 1e-6
PIXEL_LEVELS, PIXEL_SHARE = 1, 0.01
WEIGHTS, ENCODER, VAE = "lumina2_original.safetensors", "gemma_2_2b.safetensors", "ae.safetensors"


@pytest.fixture(scope="module")
def golden_models(tmp_path_factory) -> Path:
    """The recorded files where ComfyUI's users have them, and beside them what tensors do not tell."""
    folder = tmp_path_factory.mktemp("golden")
    sizes = json.loads((GOLDEN / "config.json").read_text())
    axes = {name: sizes["dit"][name] for name in ("axes_lens", "norm_eps")} | {
        "axes_dim_rope": sizes["dit"]["axes_dims"]
    }
    beside = {WEIGHTS: {"transformer": axes}, ENCODER: {"text_encoder": sizes["gemma2"]}}
    for kind, name in (("diffusion_models", WEIGHTS), ("text_encoders", ENCODER), ("vae", VAE)):
        (folder / kind).mkdir()
        shutil.copy(GOLDEN / name, folder / kind)
        if name in beside:
            (folder / kind / name).with_suffix(".json").write_text(json.dumps(beside[name]))
    shutil.copytree(GOLDEN / "lora", folder / "loras")
    return folder


def _graph(case: dict, dtype: str = "float32") -> dict:
    """The case as a graph of the pack's nodes, in the API's format."""
    load = {"model": "lumina2", "weights": WEIGHTS, "dtype": dtype, "text_encoder": ENCODER, "vae": VAE}
    graph = {"load": {"class_type": "LoadAITKModel", "inputs": load}}
    pipeline = ["load", 0]
    for index, (name, strength) in enumerate(case["loras"]):
        application = "merged" if case["merge"] else "auto"
        inputs = {
            "pipeline": pipeline, "lora_name": f"{name}.safetensors", "strength": strength, "application": application,
        }  # fmt: skip
        graph[f"lora{index}"] = {"class_type": "ApplyAITKLoRA", "inputs": inputs}
        pipeline = [f"lora{index}", 0]
    options = {
        "cfg_trunc_ratio": case["trunc"],
        "renorm_cfg": case["renorm"],
        "discrete_flow_shift": case["shift"],
        "system_prompt_on_negative": case["system_on_negative"],
    }
    graph["options"] = {"class_type": "AITKRecipeOptions", "inputs": options}
    sample = {
        "pipeline": pipeline, "prompt": case["prompt"], "negative_prompt": case["negative"], "width": case["width"],
        "height": case["height"], "steps": case["steps"], "guidance_scale": case["guidance"], "seed": case["seed"],
        "recipe": "sd-scripts", "trigger_word": "", "system_prompt": case["system"], "batch_size": 1,
        "recipe_options": ["options", 0],
    }  # fmt: skip
    graph["sample"] = {"class_type": "AITKSampler", "inputs": sample}
    save = {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "case", "format": "png"}
    graph["save"] = {"class_type": "AITKSaveImage", "inputs": save}
    return graph


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda case: case["name"])
def test_nodes_give_the_recorded_picture(case, golden_models, host, monkeypatch):
    use_host(PlainHost(golden_models, host.input, host.output, "cpu"))
    seen = _record(monkeypatch)
    recorded = load_file(GOLDEN / case["tensors"])
    result = run_prompt(_graph(case), NODE_CLASS_MAPPINGS)

    embeds = load_file(GOLDEN / INDEX["embeds"]["file"])
    for (text, embedding), kind in zip(seen.embeddings.items(), ("prompt", "negative"), strict=False):
        names = case["embeds"]
        mask = embeds[names[f"{kind}_mask"]]
        assert torch.equal(embedding.mask, mask), text
        tokens = mask.bool()
        assert _distance(embedding.embeds[tokens], embeds[names[f"{kind}_embeds"]][tokens]) < EMBEDS
    first = seen.predictions[0]
    assert _distance(first.cond, recorded["pred_cond_step0"]) < PREDICTION
    assert _distance(first.uncond, recorded["pred_uncond_step0"]) < PREDICTION
    assert _distance(-first.guided, recorded["pred_step0"]) < PREDICTION
    assert sum(prediction.uncond is not None for prediction in seen.predictions) == case["guided_steps"]

    assert _distance(result.results["sample"][5], recorded["sigmas"]) < SIGMAS
    latent = (result.results["sample"][4]["samples"] - 0.1159) * 0.3611
    assert _distance(latent, recorded["final_latents"]) < LATENTS
    (picture,) = host.output.glob("case_*.png")
    difference = np.abs(np.asarray(Image.open(picture)).astype(int) - recorded["image_uint8"].numpy().astype(int))
    assert difference.max() <= PIXEL_LEVELS
    assert (difference > 0).mean() < PIXEL_SHARE


class _Record:
    def __init__(self) -> None:
        self.embeddings: dict[Text, object] = {}
        self.predictions: list = []


def _record(monkeypatch) -> _Record:
    """Looks over the shoulder of the encoder and of the loop; both do what they do."""
    from comfyui_aitk.pipelines.models.lumina2 import loop
    from comfyui_aitk.pipelines.models.lumina2.runtime import Lumina2Runtime

    record = _Record()
    encode, predict = Lumina2Runtime.encode, loop.predict

    def encode_and_keep(self, encoder, text, device):
        record.embeddings[text] = embedding = encode(self, encoder, text, device)
        return embedding

    def predict_and_keep(*arguments):
        record.predictions.append(predict(*arguments))
        return record.predictions[-1]

    monkeypatch.setattr(Lumina2Runtime, "encode", encode_and_keep)
    monkeypatch.setattr(loop, "predict", predict_and_keep)
    assert node_engine().counters.parts_loaded == 0
    return record


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())
