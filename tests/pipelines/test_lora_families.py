"""A file for another model is named by its layers' names and widths: the sizes are those of the released models."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from comfyui_aitk.headless.tiny import flux2 as tiny_flux2
from comfyui_aitk.pipelines.errors import LoraError
from comfyui_aitk.pipelines.files.header import Header, TensorInfo
from comfyui_aitk.pipelines.lora.families import recognise as family_of
from comfyui_aitk.pipelines.lora.formats import recognise
from comfyui_aitk.pipelines.lora.names import names_of
from comfyui_aitk.pipelines.models import find_model
from comfyui_aitk.pipelines.weights.checkpoint import Checkpoint


def pair(name: str, rows: int, columns: int, kohya: bool = False) -> dict[str, TensorInfo]:
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    return {
        f"{name}.{down}.weight": TensorInfo("BF16", (16, columns)),
        f"{name}.{up}.weight": TensorInfo("BF16", (rows, 16)),
    }


Z_IMAGE = "Z-Image, Z-Image L2P, Ming-Image or Zeta-Chroma"
# title -> one layer of a file each, as (name, rows, columns)
FILES = [
    # N1: kohya's names, to_q, add_q_proj, at real widths
    ("FLUX.2-klein 9B", "lora_unet_double_blocks_0_img_attn_qkv", 12288, 4096),
    ("FLUX.2-klein 9B", "diffusion_model.single_blocks.3.linear1", 36864, 4096),
    ("FLUX.2-klein 9B", "diffusion_model.single_blocks.3.linear2", 4096, 16384),
    ("FLUX.2-klein 9B", "transformer.transformer_blocks.0.attn.add_q_proj", 4096, 4096),
    ("FLUX.2-klein 9B", "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 36864, 4096),
    ("FLUX.2-klein 9B or Qwen-Image 2.1", "transformer.transformer_blocks.0.attn.to_q", 4096, 4096),
    ("FLUX.2-dev", "lora_unet_double_blocks_0_txt_attn_qkv", 18432, 6144),
    ("FLUX.2-dev", "diffusion_model.single_blocks.30.linear1", 55296, 6144),
    ("FLUX.2-dev", "transformer.transformer_blocks.0.ff.linear_in", 36864, 6144),
    ("FLUX.2-klein 4B", "lora_unet_single_blocks_0_linear1", 27648, 3072),
    ("FLUX.2-klein 4B", "diffusion_model.double_blocks.0.img_mlp.2", 3072, 9216),
    ("FLUX.2-klein 4B", "base_model.model.transformer_blocks.0.ff_context.linear_in", 18432, 3072),
    ("FLUX.1 or Chroma", "lora_unet_single_blocks_0_linear1", 21504, 3072),
    ("FLUX.1 or Chroma", "lora_unet_double_blocks_18_img_attn_qkv", 9216, 3072),
    ("FLUX.1", "lora_unet_double_blocks_0_img_mod_lin", 18432, 3072),
    ("FLUX.1", "lora_unet_single_blocks_0_modulation_lin", 9216, 3072),
    ("FLUX.1", "transformer.single_transformer_blocks.0.norm.linear", 9216, 3072),
    ("FLUX.1", "transformer.transformer_blocks.0.norm1_context.linear", 18432, 3072),
    ("FLUX.1, Chroma or FIBO", "transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072),
    ("FLUX.1, Chroma or FIBO", "transformer.single_transformer_blocks.0.proj_mlp", 12288, 3072),
    (
        "FLUX.2-klein 4B, FLUX.1, Chroma, FIBO, Qwen-Image or Mage-Flow",
        "transformer.transformer_blocks.0.attn.to_q",
        3072,
        3072,
    ),
    ("FIBO", "transformer.caption_projection.3.linear", 1536, 2048),
    ("FLUX.2-klein 4B or FLUX.1", "diffusion_model.double_blocks.0.img_attn.qkv", 9216, 3072),
    ("Chroma", "diffusion_model.distilled_guidance_layer.layers.0.in_layer", 5120, 5120),
    ("Chroma Radiance", "diffusion_model.nerf_blocks.0.param_generator", 49152, 3072),
    ("Qwen-Image", "diffusion_model.transformer_blocks.12.img_mlp.net.0.proj", 12288, 3072),
    ("Qwen-Image or Mage-Flow", "diffusion_model.transformer_blocks.11.img_mlp.net.0.proj", 12288, 3072),
    ("Qwen-Image or Mage-Flow", "diffusion_model.transformer_blocks.0.txt_mod.1", 18432, 3072),
    ("Qwen-Image", "lora_unet_transformer_blocks_42_attn_to_q", 3072, 3072),
    ("Qwen-Image 2.1", "diffusion_model.transformer_blocks.0.img_mlp.gate_layer", 12288, 4096),
    ("Krea 2", "diffusion_model.blocks.0.attn.wq", 6144, 6144),
    ("Krea 2", "transformer.transformer_blocks.0.attn.to_gate", 6144, 6144),
    (Z_IMAGE, "lora_unet_layers_0_attention_to_q", 3840, 3840),
    (Z_IMAGE, "diffusion_model.layers.0.attention.qkv", 11520, 3840),
    (Z_IMAGE, "diffusion_model.layers.0.feed_forward.w1", 10240, 3840),
    ("Zeta-Chroma", "diffusion_model.dec_net.cond_embed", 3840, 3840),
    ("Z-Image L2P", "diffusion_model.local_decoder.bottleneck.0", 512, 768),
    ("Lumina Image 2.0", "lora_unet_layers_0_attention_qkv", 3840, 2304),
    ("Lumina Image 2.0", "transformer.layers.0.attn.to_q", 2304, 2304),
    ("OmniGen2", "diffusion_model.layers.0.attn.to_q", 2520, 2520),
    ("Ideogram 4", "diffusion_model.layers.0.attention.qkv", 13824, 4608),
    ("ERNIE-Image", "diffusion_model.layers.0.self_attention.to_q", 3072, 3072),
    ("Nucleus-Image", "diffusion_model.transformer_blocks.0.img_mlp.net.0.proj", 10752, 2048),
    ("Boogu-Image", "diffusion_model.double_stream_layers.0.img_self_attn.to_q", 3072, 3072),
    ("HiDream-I1 or HiDream-E1", "diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, 2560),
    ("HiDream-O1", "diffusion_model.language_model.layers.0.self_attn.q_proj", 4096, 4096),
    ("Anima", "diffusion_model.blocks.0.self_attn.q_proj", 2048, 2048),
    ("F-Lite", "diffusion_model.blocks.0.self_attn.qkv", 9216, 3072),
    ("F-Lite", "diffusion_model.blocks.0.cross_attn.context_kv", 6144, 3072),
    ("YuE2", "diffusion_model.model.layers.0.self_attn.qkv_proj", 4096, 2048),
    ("YuE2", "text_encoders.model.layers.0.mlp.gate_up_proj", 12288, 2048),
    ("PRX", "diffusion_model.blocks.0.attention.img_qkv_proj", 5376, 1792),
    ("Wan 2.1 1.3B", "diffusion_model.blocks.0.self_attn.q", 1536, 1536),
    ("Wan 2.2 5B", "diffusion_model.blocks.0.self_attn.q", 3072, 3072),
    ("Wan 2.1 or 2.2 14B", "lora_unet_blocks_0_cross_attn_q", 5120, 5120),
    ("LTX-2", "diffusion_model.transformer_blocks.0.audio_attn1.to_q", 2048, 2048),
    ("MiniMax-H3", "diffusion_model.blocks.0.attn.qkv_proj", 21504, 5376),
    ("ACE-Step 1.5", "diffusion_model.layers.0.cross_attn.q_proj", 2048, 2048),
    ("PixArt", "lora_transformer_transformer_blocks_0_attn1_to_q", 1152, 1152),
    ("AuraFlow", "lora_transformer_joint_transformer_blocks_0_attn_to_q", 3072, 3072),
    ("CogView4", "transformer.transformer_blocks.0.attn1.to_q", 4096, 4096),
    ("Stable Diffusion 3", "transformer.transformer_blocks.0.attn.add_q_proj", 2432, 2432),
    ("Stable Diffusion 3", "lora_unet_joint_blocks_0_x_block_attn_qkv", 4608, 1536),
    ("Stable Diffusion 1.5", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 768),
    ("Stable Diffusion 2", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024),
    ("SDXL", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v", 640, 2048),
    ("SDXL", "lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280),
]


# AI Toolkit's architectures: that of a layout's first model stands for those that only differ in their training
ARCHITECTURES = {
    "sd1": "Stable Diffusion 1.5", "sd2": "Stable Diffusion 2", "sdxl, ssd, vega": "SDXL", "sd3": "Stable Diffusion 3",
    "pixart, pixart_sigma": "PixArt", "auraflow": "AuraFlow", "cogview4": "CogView4", "lumina2": "Lumina Image 2.0",
    "flux, flex1, flex2, flux_kontext": "FLUX.1", "chroma": "Chroma", "chroma_radiance": "Chroma Radiance",
    "f-lite": "F-Lite", "zimage": "Z-Image", "zimage:l2p": "Z-Image L2P", "zeta_chroma": "Zeta-Chroma",
    "qwen_image and its edits": "Qwen-Image", "krea2": "Krea 2", "flux2": "FLUX.2-dev",
    "flux2_klein_4b": "FLUX.2-klein 4B", "flux2_klein_9b": "FLUX.2-klein 9B", "omnigen2": "OmniGen2",
    "hidream, hidream_e1": "HiDream-I1", "hidream_o1": "HiDream-O1", "anima": "Anima", "ernie_image": "ERNIE-Image",
    "nucleus_image": "Nucleus-Image", "ideogram4": "Ideogram 4", "prx_pixel": "PRX", "boogu_image": "Boogu-Image",
    "mageflow": "Mage-Flow", "wan21": "Wan 2.1", "wan22_14b": "2.2 14B", "wan22_5b": "Wan 2.2 5B", "ltx2": "LTX-2",
    "minimax_h3": "MiniMax-H3", "ace_step_15": "ACE-Step 1.5", "qwen_image_2": "Qwen-Image 2.1",
    "ming_image": "Ming-Image", "yue2": "YuE2",
}  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_row(architecture):
    assert any(ARCHITECTURES[architecture] in title for title, *_ in FILES)


@pytest.mark.parametrize(("title", "name", "rows", "columns"), FILES)
def test_names_and_widths_tell_the_model(title, name, rows, columns):
    for tensors in (
        pair(name, rows, columns, name.startswith("lora_")),
        {f"{name}.diff": TensorInfo("F16", (rows, columns))},
    ):
        assert family_of(Header(Path("x"), tensors, {}), {}) == title


def test_a_file_for_another_size_is_named_by_the_error(tmp_path):
    """On klein 4B: klein 9B's and dev's, which have layers of the same names."""
    model = find_model("flux2_klein_4b")
    folder = tiny_flux2.make_checkpoint(tmp_path / "tiny", "flux2_klein_4b")
    names = names_of(model.id, Checkpoint.open(folder, "tiny", model.files))
    for title, name, rows, columns in FILES:
        if not title.startswith("FLUX.2") or " or " in title or title == model.title:
            continue
        with pytest.raises(LoraError, match=rf"\. It looks like one for {title}\."):
            recognise(Header(Path("x"), pair(name, rows, columns), {}), "x", model.title, names)


def test_what_the_metadata_say_is_told_and_cut():
    header = Header(Path("x"), pair("diffusion_model.blocks.0.attn.wq", 6144, 6144), {})
    assert family_of(header, {"ss_base_model_version": "krea2"}) == "Krea 2 (its metadata says 'krea2')"
    assert len(family_of(header, {"ss_base_model_version": "x" * 10_000_000}) or "") < 200


def test_many_and_endless_names_take_no_time():
    names = [f"{'transformer_blocks.' * 50}{number}.attn1{'_to_q' * 50}" for number in range(20_000)]
    tensors = {key: info for name in names for key, info in pair(name, 5, 7).items()}
    tensors["layers_1" * 1_000_000 + ".diff"] = TensorInfo("F32", (2, 2))
    begin = time.process_time()
    family_of(Header(Path("x"), tensors, {}), {})
    assert time.process_time() - begin < 20
