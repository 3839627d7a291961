"""What every shared workflow relies on, and what a user of ComfyUI expects of each node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_aitk import WEB_DIRECTORY
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.models import catalogue

ROOT = Path(__file__).resolve().parents[2]
# part of every shared workflow: these lists only grow at their end
INPUTS = {
    "LoadAITKModel": ["model", "weights", "dtype", "repo_id", "options", "text_encoder", "vae"],
    "AITKRuntimeOptions": [
        "transformer_quantization", "text_encoder_quantization", "text_encoder_attention", "transformer_attention",
        "blocks_on_cpu", "placement", "compile", "embeddings_on_disk", "step_caching", "vae_tiling",
    ],
    "ApplyAITKLoRA": ["pipeline", "lora_name", "strength", "application"],
    "AITKControlImages": ["image_1", "image_2", "image_3"],
    "AITKSampler": [
        "pipeline", "prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "recipe",
        "trigger_word", "system_prompt", "batch_size", "control", "latent", "denoise",
        "recipe_options",
    ],
    "AITKSaveImage": ["images", "report", "filename_prefix", "format"],
    "AITKRecipeOptions": [
        "cfg_trunc_ratio", "renorm_cfg", "discrete_flow_shift", "system_prompt_on_negative", "image_guidance_scale",
        "do_cfg_norm", "first_image_twice", "schedule_mu", "kv_cache", "match_target_res",
    ],
    "AITKTrainingAdapter": ["pipeline", "adapter_name"],
    "AITKComparePreviews": ["ours", "trainer", "floor", "format", "replay_report"],
    "AITKTrainingJob": ["job", "weights"],
    "AITKReplayPreviews": ["job", "pipeline", "checkpoints", "samples", "strengths", "measure_floor"],
    "AITKEncodeImage": ["images", "pipeline", "recipe"],
    "AITKDecodeLatent": ["latent", "pipeline", "recipe"],
    "AITKLoRAStack": [
        "pipeline", "application",
        *(f"{name}_{slot}" for slot in range(1, 7) for name in ("lora", "strength", "on")),
    ],
    "AITKRecoveryAdapter": ["pipeline", "adapter_name", "qtype"],
}  # fmt: skip
OUTPUTS = {
    "LoadAITKModel": [("pipeline", "AITK_PIPELINE")],
    "AITKRuntimeOptions": [("options", "AITK_OPTIONS")],
    "ApplyAITKLoRA": [("pipeline", "AITK_PIPELINE"), ("trigger_word", "STRING"), ("info", "STRING")],
    "AITKControlImages": [("control", "AITK_CONTROL")],
    "AITKSampler": [
        ("image", "IMAGE"), ("pipeline", "AITK_PIPELINE"), ("width", "INT"), ("height", "INT"), ("latent", "LATENT"),
        ("sigmas", "SIGMAS"), ("report", "STRING"),
    ],
    "AITKSaveImage": [],
    "AITKRecipeOptions": [("recipe_options", "AITK_RECIPE_OPTIONS")],
    "AITKTrainingAdapter": [("pipeline", "AITK_PIPELINE")],
    "AITKComparePreviews": [("heat_map", "IMAGE"), ("contact_sheet", "IMAGE"), ("report", "STRING")],
    "AITKTrainingJob": [("job", "AITK_JOB"), ("pipeline", "AITK_PIPELINE"), ("summary", "STRING")],
    "AITKReplayPreviews": [
        ("ours", "IMAGE"), ("trainer", "IMAGE"), ("contact_sheet", "IMAGE"), ("report", "STRING"),
    ],
    "AITKEncodeImage": [("latent", "LATENT")],
    "AITKDecodeLatent": [("image", "IMAGE")],
    "AITKLoRAStack": [("pipeline", "AITK_PIPELINE"), ("trigger_words", "STRING"), ("info", "STRING")],
    "AITKRecoveryAdapter": [("pipeline", "AITK_PIPELINE")],
}  # fmt: skip
# what Nodes 2.0 folds away until it is asked for
ADVANCED = {
    "LoadAITKModel": ["dtype", "repo_id"],
    "AITKRuntimeOptions": [
        "text_encoder_attention", "transformer_attention", "compile", "embeddings_on_disk", "step_caching",
        "vae_tiling",
    ],
    "ApplyAITKLoRA": ["application"],
    "AITKSampler": ["trigger_word", "system_prompt", "batch_size", "denoise"],
    "AITKLoRAStack": ["application"],
    "AITKRecipeOptions": ["do_cfg_norm", "first_image_twice", "kv_cache", "match_target_res"],
}  # fmt: skip
# sockets of the pack's own, which wires in saved workflows and the editor's colours go by
SOCKETS = {
    "AITK_PIPELINE", "AITK_OPTIONS", "AITK_CONTROL", "AITK_RECIPE_OPTIONS", "AITK_JOB", "IMAGE", "LATENT",
}  # fmt: skip
# a longer one leaves a classic node no room for the value beside it
LONGEST_LABEL = len("text_encoder_attention")
DEFAULTS = {
    "width": 1024,
    "height": 1024,
    "steps": 25,
    "guidance_scale": 4.0,
    "seed": 42,
    "batch_size": 1,
    "denoise": 1.0,
}


def _inputs(cls) -> dict:
    declared = cls.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def test_names_and_order_are_the_published_ones(host):
    assert list(NODE_CLASS_MAPPINGS) == list(INPUTS)
    for name, cls in NODE_CLASS_MAPPINGS.items():
        assert list(_inputs(cls)) == INPUTS[name]
        assert list(zip(getattr(cls, "RETURN_NAMES", ()), cls.RETURN_TYPES, strict=True)) == OUTPUTS[name]


def test_defaults_are_the_model_page_s(host):
    inputs = _inputs(NODE_CLASS_MAPPINGS["AITKSampler"])
    assert {name: inputs[name][1]["default"] for name in DEFAULTS} == DEFAULTS
    assert inputs["seed"][1]["max"] == 2**53
    assert inputs["recipe"][0][:3] == ["reference pipeline", "trainer preview", "sd-scripts"]


def test_what_most_runs_leave_alone_is_folded_away(host):
    found = {
        name: [label for label, (_, options) in _inputs(cls).items() if options.get("advanced")]
        for name, cls in NODE_CLASS_MAPPINGS.items()
    }
    assert {name: labels for name, labels in found.items() if labels} == ADVANCED


def test_socket_types_are_the_published_ones(host):
    kinds = {kind for cls in NODE_CLASS_MAPPINGS.values() for kind, _ in _inputs(cls).values() if isinstance(kind, str)}
    assert kinds - {"STRING", "INT", "FLOAT", "BOOLEAN"} == SOCKETS


def test_a_list_s_label_leaves_room_for_its_value(host):
    for cls in NODE_CLASS_MAPPINGS.values():
        for name, (kind, options) in _inputs(cls).items():
            assert len(options.get("display_name", name)) <= LONGEST_LABEL or isinstance(kind, str), name


def test_sizes_step_to_what_is_rendered_and_saved_ones_stay(host):
    inputs = _inputs(NODE_CLASS_MAPPINGS["AITKSampler"])
    for name in ("width", "height"):
        step = inputs[name][1]["step"]
        floors = {recipe.size.floor for facts in catalogue().values() for recipe in facts.recipes.values()}
        assert {floor for floor in floors if step % floor} == {32}
        # the page rounds to min + n x step: a saved 1000 is no such number, and must not become one by another min
        assert inputs[name][1]["min"] == 0


def test_the_seed_s_control_has_its_usual_name(host):
    """A word would name the widget so: frontend 1.45, scripts/widgets.ts addValueControlWidget."""
    assert _inputs(NODE_CLASS_MAPPINGS["AITKSampler"])["seed"][1]["control_after_generate"] is True


@pytest.mark.parametrize("name", INPUTS)
def test_every_node_explains_itself(host, name):
    cls = NODE_CLASS_MAPPINGS[name]
    for label, declaration in _inputs(cls).items():
        assert len(declaration[1]["tooltip"]) > 10, label
    assert len(getattr(cls, "OUTPUT_TOOLTIPS", ())) == len(cls.RETURN_TYPES)
    assert cls.DESCRIPTION
    assert cls.SEARCH_ALIASES
    assert NODE_DISPLAY_NAME_MAPPINGS[name]
    page = (ROOT / WEB_DIRECTORY / "docs" / f"{name}.md").read_text("utf-8")
    for label in _inputs(cls):
        assert f"`{label}`" in page, f"the help page does not name the input {label}"


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ("ai toolkit", list(INPUTS)),
        ("aitk", list(INPUTS)),
        ("ostris", list(INPUTS)),
        ("lora", ["ApplyAITKLoRA", "AITKLoRAStack", "AITKTrainingAdapter", "AITKRecoveryAdapter"]),
        ("load lora", ["ApplyAITKLoRA", "AITKLoRAStack"]),
        ("trigger word", ["ApplyAITKLoRA", "AITKSampler", "AITKLoRAStack"]),
        ("quantization", ["AITKRuntimeOptions", "AITKRecoveryAdapter"]),
        ("accuracy recovery", ["AITKRecoveryAdapter"]),
        ("training adapter", ["AITKTrainingAdapter"]),
        ("vae encode", ["AITKEncodeImage"]),
        ("vae decode", ["AITKDecodeLatent"]),
        ("preview", ["AITKSampler", "AITKComparePreviews", "AITKReplayPreviews"]),
        ("load model", ["LoadAITKModel"]),
    ],
)
def test_people_s_words_find_the_nodes(host, words, nodes):
    """As the editor's search does: in the id, the display name and the aliases."""

    def said(name: str) -> list[str]:
        cls = NODE_CLASS_MAPPINGS[name]
        return [name.lower(), NODE_DISPLAY_NAME_MAPPINGS[name].lower(), *cls.SEARCH_ALIASES]

    assert [name for name in nodes if not any(words in text for text in said(name))] == []


def test_importing_the_pack_is_light():
    """No heavy library, and not even ComfyUI: it imports within its own start, beside a hundred other packs."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('any name', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['any name'] = module\n"
        "spec.loader.exec_module(module)\n"
        "[cls.INPUT_TYPES() for cls in module.NODE_CLASS_MAPPINGS.values()]\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'safetensors', 'huggingface_hub', 'numpy', 'PIL', 'comfy',"
        " 'accelerate', 'optimum', 'peft'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_handles_are_values(host, models):
    load, apply = NODE_CLASS_MAPPINGS["LoadAITKModel"], NODE_CLASS_MAPPINGS["ApplyAITKLoRA"]
    (first,) = load().load("lumina2", "tiny", "auto")
    (second,) = load().load("lumina2", "tiny", "bfloat16")
    assert first == second
    assert hash(first) == hash(second)
    with_lora, trigger, info = apply().apply(first, "tiny.safetensors", 0.5, "live")
    assert first.loras == ()
    assert with_lora != first
    assert with_lora.loras[0].strength == 0.5
    assert trigger == "t1ny"
    assert "LoRA, 31 layers, dtype BF16\ntransformer: 31 layers, rank 4; no alpha (scale 1)" in info
    assert with_lora == apply().apply(second, "tiny.safetensors", 0.5, "live")[0]


def test_a_file_that_was_saved_again_is_noticed(host, models, tmp_path):
    (tmp_path / "own" / "loras").mkdir(parents=True)
    path = shutil.copy(models / "loras" / "tiny.safetensors", tmp_path / "own" / "loras")
    shutil.copytree(models / "diffusers", tmp_path / "own" / "diffusers")
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    apply, load = NODE_CLASS_MAPPINGS["ApplyAITKLoRA"], NODE_CLASS_MAPPINGS["LoadAITKModel"]
    before = apply.IS_CHANGED("tiny.safetensors"), load.IS_CHANGED("lumina2", "tiny")
    assert (apply.IS_CHANGED("tiny.safetensors"), load.IS_CHANGED("lumina2", "tiny")) == before
    for changed in (path, tmp_path / "own" / "diffusers" / "tiny" / "vae" / "config.json"):
        os.utime(changed, ns=(0, 10**9))
    assert apply.IS_CHANGED("tiny.safetensors") != before[0]
    assert load.IS_CHANGED("lumina2", "tiny") != before[1]
    # a linked name is not known yet
    assert apply.IS_CHANGED(None) == load.IS_CHANGED(None, None) == ""


def test_folders_that_cannot_be_read_are_left_out(host, tmp_path, models):
    (tmp_path / "own" / "loras" / "lost+found").mkdir(parents=True)
    shutil.copy(models / "loras" / "tiny.safetensors", tmp_path / "own" / "loras")
    use_host(PlainHost(tmp_path / "own", host.input, host.output, "cpu"))
    # a loop, and a file where a folder is looked for
    (tmp_path / "own" / "loras" / "loop").symlink_to(tmp_path / "own" / "loras", target_is_directory=True)
    (tmp_path / "own" / "loras" / "self").symlink_to(tmp_path / "own" / "loras" / "self")
    (tmp_path / "own" / "diffusers").write_text("no folder")
    assert _inputs(NODE_CLASS_MAPPINGS["ApplyAITKLoRA"])["lora_name"][0] == ["tiny.safetensors"]
    assert _inputs(NODE_CLASS_MAPPINGS["LoadAITKModel"])["weights"][0] == ["default"]


def test_a_prompt_with_a_forbidden_name_is_refused_when_it_is_queued(host):
    validate = NODE_CLASS_MAPPINGS["ApplyAITKLoRA"].VALIDATE_INPUTS
    assert validate(lora_name="tiny.safetensors") is True
    assert "is refused" in validate(lora_name="../tiny.safetensors")
    validate = NODE_CLASS_MAPPINGS["LoadAITKModel"].VALIDATE_INPUTS
    assert validate(weights="default") is True
    assert validate(weights="tiny") is True
    assert "is refused" in validate(weights="/etc")


def test_no_node_takes_a_secret(host):
    names = [label for cls in NODE_CLASS_MAPPINGS.values() for label in _inputs(cls)]
    assert not [label for label in names if re.search("token|key|secret|password", label)]


def test_package_metadata_is_what_the_registry_wants():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "aitk-nodes"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert project["tool"]["comfy"]["PublisherId"]
    requirements = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    assert all(re.fullmatch(r"[A-Za-z-]+>=[\d.]+", line) for line in requirements), "lower bounds only"
    assert not [line for line in requirements if line.startswith("torch")]


def test_golden_files_stay_small():
    size = sum(p.stat().st_size for p in (ROOT / "tests" / "golden").rglob("*") if p.is_file())
    assert size < 38 * 2**20
    assert json.loads((ROOT / "tests" / "golden" / "lumina2" / "index.json").read_text())["cases"]
