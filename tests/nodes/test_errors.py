"""The table of bad inputs: each one beside the message that the user must get, through a real graph of real nodes.

After every one of them, the same process renders a good graph.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.execute import run_prompt
from comfyui_aitk.headless.tiny.lumina2 import make_checkpoint
from comfyui_aitk.nodes import NODE_CLASS_MAPPINGS
from comfyui_aitk.nodes.host import PlainHost, use_host
from comfyui_aitk.pipelines.errors import AITKError
from comfyui_aitk.pipelines.options import Chosen
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("kept_engine")

GOOD = {
    "load": ("LoadAITKModel", {"model": "lumina2", "weights": "tiny", "dtype": "float32"}),
    "lora": (
        "ApplyAITKLoRA",
        {"pipeline": ["load", 0], "lora_name": "tiny.safetensors", "strength": 1.0, "application": "auto"},
    ),
    "sample": (
        "AITKSampler",
        {
            "pipeline": ["lora", 0], "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 1,
            "guidance_scale": 4.0, "seed": 1, "recipe": "reference pipeline", "trigger_word": "", "system_prompt": "",
            "batch_size": 1,
        },
    ),
    "save": (
        "AITKSaveImage", {"images": ["sample", 0], "report": ["sample", 6], "filename_prefix": "x", "format": "png"},
    ),
}  # fmt: skip


def graph(**changes: dict) -> dict:
    """The good graph with some inputs changed: ``graph(sample={"steps": 0})``."""
    return {
        node: {"class_type": class_type, "inputs": inputs | changes.get(node, {})}
        for node, (class_type, inputs) in GOOD.items()
    }


@pytest.fixture
def own_models(tmp_path: Path, host: PlainHost, models: Path) -> Path:
    """A models folder that a test may damage, with the shared one beside it."""
    folder = tmp_path / "models"
    (folder / "loras").mkdir(parents=True)
    roots = {"diffusers": models / "diffusers" / "tiny", "loras": models / "loras" / "tiny.safetensors"}
    use_host(PlainHost(folder, host.input, host.output, "cpu", roots))
    return folder


def _fails(changed: dict, message: str) -> None:
    with pytest.raises(AITKError) as caught:
        run_prompt(changed, NODE_CLASS_MAPPINGS)
    assert message in str(caught.value), str(caught.value)
    assert run_prompt(graph(), NODE_CLASS_MAPPINGS).outputs["save"]["images"], "the next run works"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": {"steps": 0}}, "steps is 0: choose 1 to 10000"),
        ({"sample": {"batch_size": 0}}, "batch_size is 0: choose 1 to"),
        ({"sample": {"seed": -1}}, "seed is -1: choose 0 to 2^64 - 1"),
        ({"sample": {"seed": 2**64}}, "seed is 18446744073709551616: choose 0 to 2^64 - 1"),
        ({"sample": {"guidance_scale": float("nan")}}, "guidance_scale is nan"),
        ({"sample": {"denoise": 0.0}}, "denoise is 0.0: choose 0.01 to 1"),
        ({"sample": {"denoise": 1.5}}, "denoise is 1.5: choose 0.01 to 1"),
        ({"sample": {"denoise": 1e-9}}, "denoise is 1e-09: choose 0.01 to 1"),
        ({"sample": {"prompt": "a\ud800"}}, "prompt holds half a character"),
        ({"sample": {"pipeline": 5}}, "pipeline is no AITK_PIPELINE"),
        ({"sample": {"latent": 3}}, "latent is no LATENT"),
        ({"sample": {"control": 1}}, "control is no AITK_CONTROL"),
        ({"sample": {"recipe_options": 1}}, "recipe_options is no AITK_RECIPE_OPTIONS"),
        (
            {"sample": {"recipe_options": Chosen.of({"renorm_cfg": 0.5, "discrete_flow_shift": 3.0})}},
            "renorm_cfg, discrete_flow_shift of AITK Recipe Options would do nothing: the recipe 'reference pip",
        ),
        (
            {"sample": {"recipe": "sd-scripts", "recipe_options": Chosen.of({"cfg_trunc_ratio": float("nan")})}},
            "cfg_trunc_ratio is nan: choose 0 to 100",
        ),
        (
            {"sample": {"recipe": "sd-scripts", "recipe_options": Chosen.of({"discrete_flow_shift": 0.0})}},
            "discrete_flow_shift is 0.0: choose 0.01 to 100",
        ),
        ({"lora": {"lora_name": "x" * 5000}}, "is not there"),
        ({"save": {"filename_prefix": "x" * 300 + "/y"}}, "cannot be made: File name too long"),
        ({"sample": {"denoise": 0.5}}, "denoise is below 1, but no latent is connected"),
        ({"sample": {"width": 0}}, "width is 0: a picture needs at least 64 pixels a side"),
        ({"sample": {"height": 63}}, "height is 63: the smallest side is 64 pixels"),
        ({"sample": {"width": 10**6}}, "width is 1,000,000: this model renders at most 8,192"),
        ({"sample": {"width": 0, "recipe": "trainer preview"}}, "width is 0: a picture needs at least 64 pixels"),
        ({"sample": {"height": 10**6, "recipe": "trainer preview"}}, "height is 1,000,000: this model renders at most"),
        ({"sample": {"width": 200, "recipe": "trainer preview"}}, "The nearest valid values are 192 and 208"),
        ({"sample": {"recipe": "best"}}, "'best'"),
        ({"load": {"model": "lumina3"}}, "'lumina3'"),
        ({"load": {"dtype": "float8"}}, "'float8'"),
        ({"load": {"weights": "nowhere"}}, "weights 'nowhere' is not there"),
        ({"load": {"weights": "../tiny"}}, "weights '../tiny' is refused"),
        ({"load": {"weights": "/etc"}}, "weights '/etc' is refused"),
        ({"load": {"weights": "C:\\models\\tiny"}}, "weights 'C:\\\\models\\\\tiny' is refused"),
        ({"load": {"repo_id": "owner/name"}}, "repo_id 'owner/name' needs weights = default"),
        ({"load": {"weights": "default", "repo_id": "../../etc"}}, "'../../etc' is no Hugging Face repository id"),
        ({"load": {"weights": "default"}}, "'Alpha-VLLM/Lumina-Image-2.0' is not (wholly) in the cache"),
        ({"lora": {"lora_name": "none.safetensors"}}, "LoRA 'none.safetensors' is not there"),
        ({"lora": {"lora_name": "../loras/tiny.safetensors"}}, "LoRA '../loras/tiny.safetensors' is refused"),
        ({"lora": {"lora_name": "a/../../b.safetensors"}}, "LoRA 'a/../../b.safetensors' is refused"),
        ({"lora": {"lora_name": ""}}, "No LoRA is given"),
        ({"lora": {"strength": float("inf")}}, "strength is inf"),
        ({"save": {"filename_prefix": "../outside"}}, "filename_prefix '../outside' is refused"),
        ({"save": {"filename_prefix": "/tmp/outside"}}, "filename_prefix '/tmp/outside' is refused"),
        ({"save": {"format": "bmp"}}, "'bmp'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values(host, monkeypatch, tmp_path, changes, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty cache"))
    _fails(graph(**changes), message)


def _lora(edit) -> object:
    """A LoRA file made from the good one's tensors."""

    def write(path: Path, good: Path) -> None:
        save_file(edit(load_file(good)), path)

    return write


def _renamed(prefix: str, names: list[str]) -> object:
    tensors = {f"{prefix}{name}.lora_{part}.weight": torch.zeros(4, 4) for name in names for part in "AB"}
    return _lora(lambda good: tensors)


FIRST = "transformer.context_refiner.0.attn.to_k"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, good: path.write_bytes(good.read_bytes()[:-8]), "'bad.safetensors' is cut off"),
        (lambda path, good: path.write_bytes(good.read_bytes()[:50]), "'bad.safetensors' is cut off"),
        (lambda path, good: path.write_bytes(b""), "it has only 0 bytes"),
        (lambda path, good: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "it is an HTML page"),
        (lambda path, good: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer"),
        (lambda path, good: torch.save({"a": torch.zeros(3)}, path), "a PyTorch pickle or zip archive"),
        (lambda path, good: path.write_bytes(good.read_bytes() + b"more"), "4 bytes follow after its last tensor"),
        (_lora(lambda good: {}), "holds no tensors"),
        (
            _renamed("transformer.", ["single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_q"]),
            "is no LoRA for Lumina Image 2.0: none of its 4 keys names a layer of it. It looks like one for FLUX.1",
        ),
        (_renamed("diffusion_model.", ["double_blocks.0.img_attn.qkv"]), "It looks like one for FLUX.2 or FLUX.1"),
        (
            _renamed("diffusion_model.", ["layers.0.feed_forward.linear_1"]),
            "'diffusion_model.layers.0.feed_forward.linear_1' is [512, 96] in the model, and the file's tensors "
            "make [4, 4]. It looks like one for OmniGen2",
        ),
        (
            _renamed("diffusion_model.", ["layers.0.feed_forward.w1", "layers.0.adaLN_modulation.0"]),
            "1 of its 2 layers are not in the model, the first is 'diffusion_model.layers.0.adaLN_modulation.0'. It "
            "looks like one for Z-Image",
        ),
        (_renamed("lora_unet_", ["down_blocks_0_attentions_0"]), "It looks like one for Stable Diffusion 1 or 2, or S"),
        (_renamed("", ["nothing.known"]), "none of its 2 keys names a layer of it. Its first key is 'nothing.known"),
        (
            _lora(lambda good: good | _layers_of_a_longer_model(good)),
            "2 of its 33 layers are not in the model, the first is 'transformer.layers.7.attn.to_q'. "
            "Was it trained on another version or size of the model?\n  transformer.layers.7: 2 layers",
        ),
        (
            _lora(lambda good: {k: v for k, v in good.items() if k != f"{FIRST}.lora_B.weight"}),
            f"is damaged: {FIRST!r} lacks lora_B. Export or download the file again",
        ),
        (
            _lora(lambda good: good | {f"{FIRST}.lora_B.weight": torch.zeros(16, 3)}),
            "lora_B and lora_A [16, 3] and [4, 96] do not multiply to one matrix",
        ),
        (
            _lora(
                lambda good: {k: torch.zeros(v.shape[0] * (2 if "_B" in k else 1), v.shape[1]) for k, v in good.items()}
            ),
            "tensors make [96, 96]. Was it trained on another version or size of the model?",
        ),
        (
            _lora(lambda good: good | {f"{FIRST}.lora_A.weight": good[f"{FIRST}.lora_A.weight"] * float("nan")}),
            "holds NaN or Inf in 'transformer.context_refiner.0.attn.to_k.lora_A.weight'",
        ),
        (
            _lora(lambda good: good | {f"{FIRST}.lora_B.weight": good[f"{FIRST}.lora_B.weight"] + float("inf")}),
            "holds NaN or Inf in 'transformer.context_refiner.0.attn.to_k.lora_B.weight'",
        ),
        (_lora(lambda good: good | {f"{FIRST}.alpha": torch.zeros(3)}), "has shape [3], not one value"),
        (_lora(lambda good: good | {f"{FIRST}.lora_A.weight": torch.zeros(4, 96, dtype=torch.int8)}), "is I8"),
        (_lora(lambda good: good | {f"{FIRST}.lokr_w1": torch.zeros(2, 2)}), f"{FIRST!r} lacks lokr_w2"),
        (_lora(lambda good: good | {f"{FIRST}.hada_w1_a": torch.zeros(2, 2)}), f"{FIRST!r} lacks hada_w1_b"),
        (_lora(lambda good: _lokr(good, "lokr_w1", "lokr_w2_a")), f"{FIRST!r} lacks lokr_w2_b"),
        (_lora(lambda good: _lokr(good, "lokr_w2")), f"{FIRST!r} lacks lokr_w1"),
        (_lora(lambda good: _lokr(good, "lokr_w1", "lokr_w2", "lokr_w2_a")), "has lokr_w2_a beside a whole layer"),
        (
            _lora(lambda good: _lokr(good, "lokr_w1", "lokr_w2")),
            "tensors make [4, 4]. Was it trained on another version or size",
        ),
        (
            _lora(lambda good: {k: v for k, v in good.items() if "lora_B" in k}),
            f"{FIRST!r} lacks lora_A",
        ),
        (_lora(lambda good: {k: v for k, v in good.items() if "lora_A" in k}), f"{FIRST!r} lacks lora_B"),
        (_lora(lambda good: good | {"unknown.thing": torch.zeros(2)}), "1 of 63 keys that are of no known kind"),
    ],
)
def test_bad_lora_files(own_models, models, write, message):
    write(own_models / "loras" / "bad.safetensors", models / "loras" / "tiny.safetensors")
    _fails(graph(lora={"lora_name": "bad.safetensors"}), message)


def _lokr(good: dict, *roles: str) -> dict:
    return {f"{FIRST}.{role}": torch.ones(2, 2) for role in roles}


def _layers_of_a_longer_model(good: dict) -> dict:
    return {
        k.replace("layers.1.", "layers.7."): v.clone()
        for k, v in good.items()
        if "layers.1.attn.to_q" in k or "1.attn.to_v" in k
    }


def _json_edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _with_a_foreign_token(folder: Path) -> str:
    """The tokenizer with a beginning-of-text token that no encoder of that size has an embedding for."""
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"]["<bos>"]["ids"] = [999999]
    return json.dumps(tokenizer)


def _tensor_edit(folder: Path, part: str, edit) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    save_file(edit(load_file(path)), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            # some repositories have no index; a transformer's folder alone tells them
            lambda f: [(f / name).unlink() for name in ("model_index.json", "transformer/config.json")],
            "'bad' is no model folder of Lumina Image 2.0: it has no model_index.json",
        ),
        (lambda f: (f / "vae").rename(f / "vae2"), "'bad' is incomplete: it has no folder vae"),
        (lambda f: (f / "transformer" / "config.json").write_text("{"), "transformer/config.json is not valid JSON"),
        (
            lambda f: _json_edit(f / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
            "'bad' holds a FluxTransformer2DModel, and Lumina Image 2.0 is a Lumina2Transformer2DModel",
        ),
        (
            lambda f: _json_edit(f / "text_encoder" / "config.json", model_type="t5"),
            "The text encoder of 'bad' is a 't5' model, not gemma2",
        ),
        (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "has no tokenizer"),
        (
            lambda f: (f / "tokenizer" / "tokenizer.json").write_text(_with_a_foreign_token(f)),
            "The tokenizer does not belong to the text encoder of 'bad': it gives token 999999",
        ),
        (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{}"), "The tokenizer of 'bad' cannot be used"),
        (
            lambda f: _json_edit(f / "tokenizer" / "tokenizer_config.json", pad_token=None),
            "The tokenizer of 'bad' has no padding token",
        ),
        (
            lambda f: _json_edit(f / "transformer" / "config.json", axes_lens=None),
            "has axes_lens None and patch",
        ),
        (
            lambda f: _json_edit(f / "transformer" / "config.json", axes_lens=[10, 512, 512]),
            "10 positions on its first axis, and 257 are needed",
        ),
        (
            lambda f: _json_edit(f / "transformer" / "config.json", hidden_size="96"),
            "transformer/config.json of 'bad' cannot be used (",
        ),
        (
            lambda f: _json_edit(f / "text_encoder" / "config.json", num_attention_heads="many"),
            "text_encoder/config.json of 'bad' cannot be used (",
        ),
        (lambda f: _json_edit(f / "vae" / "config.json", scaling_factor=None), "scaling_factor, shift_factor [None"),
        (
            lambda f: _tensor_edit(
                f, "transformer", lambda t: {k: v for k, v in t.items() if "x_embedder.bias" not in k}
            ),
            "'bad' is incomplete: transformer lacks 1 of",
        ),
        (
            lambda f: _tensor_edit(f, "transformer", lambda t: t | {"layers.9.norm2.weight": torch.zeros(3)}),
            "'bad' does not fit its own transformer/config.json: the model has no place for 1 of its tensors",
        ),
        (
            lambda f: _tensor_edit(f, "vae", lambda t: t | {"decoder.conv_in.bias": torch.zeros(3)}),
            "'bad' does not fit its own vae/config.json: 'decoder.conv_in.bias' has shape [3] in the file and [32]",
        ),
        (
            lambda f: _tensor_edit(f, "transformer", lambda t: t | {"x_embedder.bias": torch.full((96,), torch.nan)}),
            "bad transformer is damaged: its tensor 'x_embedder.bias' holds NaN or Inf",
        ),
        (
            lambda f: _tensor_edit(f, "text_encoder", lambda t: t | {"norm.weight": torch.full((32,), torch.inf)}),
            "bad text_encoder is damaged: its tensor 'norm.weight' holds NaN or Inf",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(f / "vae" / "model.bin"),
            "'bad' has no safetensors weights in vae. It has model.bin, which is not read from",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
            ),
            "'bad' is incomplete: vae lacks 2 of 2 shards, the first is 'one.safetensors'",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_text("<html>no</html>"),
            "'diffusion_pytorch_model.safetensors' is no safetensors file: it is an HTML page",
        ),
    ],
)
def test_bad_model_folders(own_models, damage, message):
    folder = make_checkpoint(own_models / "diffusers" / "bad")
    damage(folder)
    _fails(graph(load={"weights": "bad"}), message)


def test_control_images_are_refused_by_lumina2(host):
    nodes = NODE_CLASS_MAPPINGS
    (pipeline,) = nodes["LoadAITKModel"]().load("lumina2", "tiny", "auto")
    (control,) = nodes["AITKControlImages"]().collect(image_2=torch.zeros(1, 32, 48, 3))
    inputs = GOOD["sample"][1] | {"pipeline": pipeline, "control": control}
    with pytest.raises(AITKError, match=r"Lumina Image 2.0 takes no control images; connected: 1\. Disconnect"):
        nodes["AITKSampler"]().sample(**inputs)
    with pytest.raises(AITKError, match="No image is connected"):
        nodes["AITKControlImages"]().collect()
    with pytest.raises(AITKError, match="image_1 holds 2 pictures"):
        nodes["AITKControlImages"]().collect(torch.zeros(2, 32, 48, 3))


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"samples": torch.ones(1, 4, 8, 8)}, "The latent has shape [1, 4, 8, 8]; Lumina Image 2.0 needs"),
        ({"samples": torch.zeros(3, 16, 8, 8)}, "The latent holds 3 pictures, and batch_size is 2"),
        ({"samples": torch.ones(1, 16, 9, 8)}, "The latent stands for 64 x 72 pixels"),
        ({"samples": torch.zeros(1, 16, 8, 8), "noise_mask": torch.ones(1)}, "inpainting mask"),
    ],
)
def test_bad_latents(host, latent, message):
    (pipeline,) = NODE_CLASS_MAPPINGS["LoadAITKModel"]().load("lumina2", "tiny", "auto")
    inputs = GOOD["sample"][1] | {"pipeline": pipeline, "latent": latent, "denoise": 0.5, "batch_size": 2}
    with pytest.raises(AITKError) as caught:
        NODE_CLASS_MAPPINGS["AITKSampler"]().sample(**inputs)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "fox " * 5000}, "the prompt was cut at 256 tokens: its last "),
        ({"negative_prompt": "fox " * 5000}, "the negative prompt was cut at 256 tokens: its last "),
        (
            {"negative_prompt": "fog", "guidance_scale": 1.0},
            "the negative prompt is not used: guidance_scale is 1 or l",
        ),
        (
            {"prompt": "a fox --w 64", "recipe": "trainer preview"},
            "AI Toolkit reads flags from '--' on: '--w 64' was cut off the prompt",
        ),
        ({"width": 90}, "rendered at 64 x 64 (asked for: 90 x 64)"),
        ({"width": 63, "recipe": "trainer preview"}, "rendered at 64 x 64 (asked for: 63 x 64)"),
    ],
    ids=str,
)
def test_what_is_valid_but_worth_saying_stands_on_the_node_and_in_the_report(host, capsys, changes, note):
    result = run_prompt(graph(sample=changes), NODE_CLASS_MAPPINGS)
    assert any(line.startswith(note) for line in json.loads(result.results["sample"][6])["notes"])
    assert f"node sample: {note}" in capsys.readouterr().err
