"""The recorded tiny files of sd-scripts as a models folder, and a case of the recording as a graph of nodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "lumina2_sd_scripts"
WEIGHTS, ENCODER, VAE = "lumina2_original.safetensors", "gemma_2_2b.safetensors", "ae.safetensors"


def make_models(folder: Path) -> Path:
    """The recorded files where ComfyUI's users have them, and beside them what tensors do not tell."""
    sizes = json.loads((GOLDEN / "config.json").read_text())
    axes = {name: sizes["dit"][name] for name in ("axes_lens", "norm_eps")}
    axes["axes_dim_rope"] = sizes["dit"]["axes_dims"]
    beside = {WEIGHTS: {"transformer": axes}, ENCODER: {"text_encoder": sizes["gemma2"]}}
    for kind, name in (("diffusion_models", WEIGHTS), ("text_encoders", ENCODER), ("vae", VAE)):
        (folder / kind).mkdir()
        shutil.copy(GOLDEN / name, folder / kind)
        if name in beside:
            (folder / kind / name).with_suffix(".aitk.json").write_text(json.dumps(beside[name]))
    shutil.copytree(GOLDEN / "lora", folder / "loras")
    return folder


def graph(case: dict, dtype: str = "float32") -> dict:
    """A case in the API's format; its fields are those of the recording's index."""
    load = {"model": "lumina2", "weights": WEIGHTS, "dtype": dtype, "text_encoder": ENCODER, "vae": VAE}
    nodes = {"load": {"class_type": "LoadAITKModel", "inputs": load}}
    pipeline = ["load", 0]
    for index, (name, strength) in enumerate(case["loras"]):
        application = "merged" if case["merge"] else "auto"
        inputs = {
            "pipeline": pipeline, "lora_name": f"{name}.safetensors", "strength": strength, "application": application,
        }  # fmt: skip
        nodes[f"lora{index}"] = {"class_type": "ApplyAITKLoRA", "inputs": inputs}
        pipeline = [f"lora{index}", 0]
    options = {
        "cfg_trunc_ratio": case["trunc"],
        "renorm_cfg": case["renorm"],
        "discrete_flow_shift": case["shift"],
        "system_prompt_on_negative": case["system_on_negative"],
    }
    nodes["options"] = {"class_type": "AITKRecipeOptions", "inputs": options}
    sample = {
        "pipeline": pipeline, "prompt": case["prompt"], "negative_prompt": case["negative"], "width": case["width"],
        "height": case["height"], "steps": case["steps"], "guidance_scale": case["guidance"], "seed": case["seed"],
        "recipe": "sd-scripts", "trigger_word": "", "system_prompt": case["system"], "batch_size": 1,
        "recipe_options": ["options", 0],
    }  # fmt: skip
    nodes["sample"] = {"class_type": "AITKSampler", "inputs": sample}
    save = {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "case", "format": "png"}
    nodes["save"] = {"class_type": "AITKSaveImage", "inputs": save}
    return nodes
