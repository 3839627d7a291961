"""The tiny Qwen-Image-Edit: what tensors do not tell is the release's, and diffusers reads and renders it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from comfyui_aitk.headless.tiny import qwen_image as single
from comfyui_aitk.headless.tiny import qwen_image_edit as tiny
from comfyui_aitk.pipelines.files.quantised import read_header
from comfyui_aitk.pipelines.models.qwen_image.edit_recipes import EDIT_TEMPLATE, EDIT_TEMPLATE_TOKENS
from comfyui_aitk.pipelines.parts.language_model.qwen2_5_vl_files import QWEN2_5_VL_SEEING
from comfyui_aitk.pipelines.weights.layout import placed
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("tiny") / "edit", zero_time=True)


def _config(folder: Path, part: str) -> dict:
    return json.loads((folder / part / "config.json").read_text())


def test_its_single_file_says_what_its_folder_says(folder, tmp_path):
    path = single.write_single_text_encoder(tmp_path / "encoder.safetensors", folder)
    files = QWEN2_5_VL_SEEING.files()
    infos = placed(read_header([path]).tensors, files.layouts[0], "").infos
    found, whole = files.config(infos), QWEN2_5_VL_SEEING.folder_config(_config(folder, "text_encoder"))
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size"):
        assert found[key] == whole[key], key
    for key, value in found["vision_config"].items():
        assert whole["vision_config"][key] == value, key
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    assert model.model.visual.blocks[0].attn.head_dim == 80
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 7 * 2**20


def test_its_configuration_is_2511_s_and_its_template_s_head_has_64_tokens(folder, tmp_path):
    assert _config(folder, "transformer")["zero_cond_t"] is True
    plain = tiny.make_checkpoint(tmp_path / "edit")
    assert _config(plain, "transformer")["zero_cond_t"] is False
    head = EDIT_TEMPLATE.split("{}", maxsplit=1)[0]
    for name in ("processor", "tokenizer"):
        tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
        assert len(tokenizer.encode(head).ids) == EDIT_TEMPLATE_TOKENS
    weights = [path / "text_encoder" / "model.safetensors" for path in (folder, plain)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}) == 1


@torch.no_grad()
def test_diffusers_renders_it(folder):
    pytest.importorskip("torchvision", reason="transformers' processor needs torchvision")
    from diffusers import QwenImageEditPlusPipeline
    from PIL import Image

    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder)
    picture = Image.new("RGB", (64, 64), (200, 30, 60))
    found = pipeline(image=[picture], prompt="a cat", height=64, width=64, num_inference_steps=2, true_cfg_scale=1.0)
    assert found.images[0].size == (64, 64)
