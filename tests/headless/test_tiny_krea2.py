"""The tiny Krea 2: diffusers reads it, its template has the real one's tokens, and LoRAs have AI Toolkit's names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import krea2 as tiny
from comfyui_aitk.headless.tiny.files import read_part
from comfyui_aitk.headless.tiny.qwen_image_vae import write_wan_vae
from comfyui_aitk.pipelines.models.krea2.recipes import AFTER, BEFORE, DROPPED
from diffusers import Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_krea2_transformer_checkpoint_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

GOLDEN = Path(__file__).parent.parent / "golden" / "krea2"
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("tiny") / "krea2")


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_checkpoint_is_small_and_says_what_tensors_do_not_as_the_real_one(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 7.5e6
    text, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("text_encoder", "vae"))
    language = text["text_config"]
    assert text["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert (language["head_dim"], language["num_hidden_layers"], language["rms_norm_eps"]) == (128, 36, 1e-6)
    assert language["num_attention_heads"] > language["num_key_value_heads"]
    assert language["rope_parameters"]["rope_theta"] == 5e6
    assert (vae["z_dim"], vae["dim_mult"], vae["num_res_blocks"]) == (16, [1, 2, 4, 4], 2)
    transformer = tiny.released(folder)
    assert transformer["blocks.0.attn.qknorm.qnorm.scale"].shape == (128,)
    assert transformer["blocks.0.attn.wq.weight"].shape[0] > transformer["blocks.0.attn.wk.weight"].shape[0]


def test_the_released_names_are_those_of_ai_toolkit_and_diffusers_reads_them(folder, tmp_path):
    """Those of the checkpoint that AI Toolkit loaded, and diffusers' converter gives the same as ours."""
    theirs, ours = load_file(GOLDEN / "base" / "raw.safetensors"), tiny.released(folder)
    assert ours.keys() == theirs.keys()
    converted = convert_krea2_transformer_checkpoint_to_diffusers(dict(ours))
    tiny.write_diffusers_transformer(tmp_path, folder)
    stored = read_part(tmp_path, "transformer")
    assert _same(stored, converted)
    read = Krea2Transformer2DModel.from_pretrained(tmp_path / "transformer", torch_dtype=torch.float32)
    assert _same({name: value.float() for name, value in stored.items()}, dict(read.state_dict()))


def test_the_same_seed_makes_the_same_bytes_and_leaves_torchs_own_alone(tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        state = torch.get_rng_state()
        folder = tiny.make_checkpoint(tmp_path / name / "krea2", seed)
        assert torch.equal(state, torch.get_rng_state())
        tiny.write_gguf(tmp_path / name / "files" / "dit.gguf", folder, "Q8_0")
        return {
            str(file.relative_to(tmp_path / name)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }

    first, again, other = digests("a", 0), digests("b", 0), digests("c", 5)
    assert first == again
    assert not [n for n in first if n.endswith((".safetensors", ".gguf")) and first[n] == other[n]]


def test_the_template_has_the_real_one_s_tokens(folder):
    rows = json.loads((folder / "text_encoder" / "config.json").read_text())["text_config"]["vocab_size"]
    for place in (folder, GOLDEN / "base"):
        tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
        assert len(tokenizer(BEFORE).input_ids) == DROPPED
        assert len(tokenizer(AFTER).input_ids) == 5
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    for name, token in (("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>")):
        assert config[f"{name}_token_id"] == tokenizer.convert_tokens_to_ids(token)
    assert max(tokenizer("é 🦊 2024 a red fox").input_ids) < len(tokenizer) < rows


def test_single_files_have_comfyuis_names(folder, tmp_path):
    encoder = load_file(tiny.write_single_text_encoder(tmp_path / "encoder.safetensors", folder))
    whole = Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    assert {name.split(".")[0] for name in encoder} == {"model", "visual"}
    language = {name: value for name, value in encoder.items() if name.startswith("model.")}
    state = whole.model.language_model.state_dict()
    assert _same(language, {f"model.{name}": value for name, value in state.items()})
    vae = convert_wan_vae_to_diffusers(load_file(write_wan_vae(tmp_path / "vae.safetensors", folder)))
    assert _same(vae, read_part(folder, "vae"))
    everything = load_file(tiny.write_all_in_one(tmp_path / "all.safetensors", folder))
    assert {f"{PREFIX}{name}" for name in tiny.released(folder)} <= everything.keys()
    assert "text_encoders.qwen3vl_4b.transformer.model.embed_tokens.weight" in everything
    assert "vae.decoder.middle.0.residual.0.gamma" in everything


@pytest.mark.parametrize("kind", ["lora_f32", "lora_all_f32"])
def test_a_lora_has_ai_toolkits_keys_and_metadata(tmp_path, kind):
    """Fitted to the checkpoint that AI Toolkit's own were recorded with."""
    base, whole = GOLDEN / "base", "all" in kind
    targets = json.loads((GOLDEN / "index.json").read_text())["lora_targets"]
    assert set(tiny.trained_layers(base)) == {name.removeprefix("transformer.") for name in targets}
    path = tiny.make_lora(tmp_path / "fox.safetensors", base, not whole, dtype=torch.float32, trigger_word="t1ny")
    assert _shapes(load_file(path)) == _shapes(load_file(GOLDEN / "lora" / f"{kind}.safetensors"))
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "krea2"


@pytest.mark.parametrize(
    ("recorded", "options"),
    {"lokr_full_f16": {}, "lokr_factor_f16": {"factor": 8}, "lokr_decomposed_f32": {"rank": 4}}.items(),
)
def test_a_lokr_has_ai_toolkits_keys_and_alphas(tmp_path, recorded, options):
    dtype = torch.float16 if recorded.endswith("f16") else torch.float32
    theirs = load_file(GOLDEN / "lora" / f"{recorded}.safetensors")
    ours = load_file(tiny.make_lokr(tmp_path / "lokr.safetensors", GOLDEN / "base", dtype=dtype, **options))
    assert _shapes(ours) == _shapes(theirs)
    alphas = [name for name in ours if name.endswith(".alpha")]
    assert all(torch.equal(ours[name], theirs[name]) for name in alphas)
