"""The tiny Qwen-Image: diffusers reads and renders it, and single files and LoRAs have the real ones' names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny import qwen_image as tiny
from comfyui_aitk.headless.tiny.files import read_part
from comfyui_aitk.pipelines.models.qwen_image.recipes import TEMPLATE
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

GOLDEN = Path(__file__).parent.parent / "golden" / "qwen_image"
WIDTH, TEXT, HEAD = 128, 256, 128
LINEAR = {
    **{f"attn.{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")},
    **{f"attn.{name}": (WIDTH, WIDTH) for name in ("to_out.0", "to_add_out")},
    **{f"{stream}_mod.1": (6 * WIDTH, WIDTH) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.0.proj": (4 * WIDTH, WIDTH) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.2": (WIDTH, 4 * WIDTH) for stream in ("img", "txt")},
}
AROUND = {
    "img_in": (WIDTH, 64), "txt_in": (WIDTH, TEXT), "proj_out": (64, WIDTH), "norm_out.linear": (2 * WIDTH, WIDTH),
    "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
    "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
}  # fmt: skip
BLOCK = {
    **{f"{name}.weight": shape for name, shape in LINEAR.items()},
    **{f"{name}.bias": shape[:1] for name, shape in LINEAR.items()},
    **{f"attn.{name}.weight": (HEAD,) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")},
}
DIT = {
    "txt_norm.weight": (TEXT,),
    **{f"{name}.weight": shape for name, shape in AROUND.items()},
    **{f"{name}.bias": shape[:1] for name, shape in AROUND.items()},
    **{f"transformer_blocks.{index}.{name}": shape for index in (0, 1) for name, shape in BLOCK.items()},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("tiny") / "qwen_image")


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = QwenImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_tensors_do_not_tell_is_the_release_s(folder):
    parts = ("transformer", "vae", "text_encoder")
    dit, vae, whole = (json.loads((folder / part / "config.json").read_text()) for part in parts)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (dit["attention_head_dim"], dit["axes_dims_rope"], dit["patch_size"]) == (HEAD, [16, 56, 56], 2)
    assert (dit["in_channels"], dit["out_channels"], dit["zero_cond_t"]) == (64, 16, False)
    text = whole["text_config"]
    assert dit["joint_attention_dim"] == text["hidden_size"]
    assert text["num_attention_heads"] > text["num_key_value_heads"]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    heads = model.model.language_model.layers[0].self_attn
    assert heads.head_dim == HEAD
    assert len(vae["latents_mean"]) == len(vae["latents_std"]) == 16
    assert (scheduler["shift_terminal"], scheduler["max_image_seq_len"], scheduler["max_shift"]) == (0.02, 8192, 0.9)
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 7 * 2**20


def test_the_same_seed_makes_the_same_bytes_and_leaves_torchs_own_alone(tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        state = torch.get_rng_state()
        folder = tiny.make_checkpoint(tmp_path / name / "qwen_image", seed)
        assert torch.equal(state, torch.get_rng_state())
        files = tmp_path / name / "files"
        tiny.write_all_in_one(files / "all.safetensors", folder)
        tiny.write_gguf(files / "dit.gguf", folder, "Q8_0")
        tiny.make_lora(files / "lora.safetensors", folder)
        tiny.make_lokr(files / "lokr.safetensors", folder)
        return {
            str(file.relative_to(tmp_path / name)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }

    first, again, other = digests("a", 0), digests("b", 0), digests("c", 5)
    assert first == again
    same = {name for name in first if first[name] == other[name] and name.endswith((".safetensors", ".gguf"))}
    # those are made from their own seed and the shapes alone
    assert same == {"files/lokr.safetensors", "files/lora.safetensors"}


@torch.no_grad()
def test_diffusers_renders_it_and_everything_moves_the_picture(folder, pipeline, tmp_path):
    def render(**changed: object) -> np.ndarray:
        inputs = {"prompt": "a red fox", "negative_prompt": "", "height": 64, "width": 64, "num_inference_steps": 2}
        generator = torch.Generator().manual_seed(1)
        inputs |= {"true_cfg_scale": 3.0, "generator": generator, "output_type": "np"}
        return pipeline(**inputs | changed).images[0]

    plain = render()
    assert plain.shape == (64, 64, 3)
    assert plain.std() > 0.05
    pipeline.load_lora_weights(str(tiny.make_lora(tmp_path / "lora.safetensors", folder)))
    pictures = {"lora": render()}
    pipeline.unload_lora_weights()
    assert np.array_equal(plain, render())
    pictures |= {
        "prompt": render(prompt="a painting of a cat"),
        "negative": render(negative_prompt="blurry"),
        "guidance": render(true_cfg_scale=1.0),
        "generator": render(generator=torch.Generator().manual_seed(2)),
    }
    for name, picture in pictures.items():
        assert np.abs(picture - plain).mean() > 0.005, name


def test_the_tokenizer_s_words_are_the_template_s(folder, pipeline):
    head = TEMPLATE.split("{}", maxsplit=1)[0]
    for text in (head, TEMPLATE.format("a red fox, é 🦊 2024")):
        ids = pipeline.tokenizer(text).input_ids
        assert ids == tiny.make_tokenizer().encode(text).ids
        assert max(ids) < json.loads((folder / "text_encoder" / "config.json").read_text())["text_config"]["vocab_size"]
    assert len(pipeline.tokenizer(head).input_ids) == pipeline.prompt_template_encode_start_idx


# --- single files -----------------------------------------------------------------------------------------------------


def test_single_files_have_the_released_names(folder, tmp_path):
    path, text_encoder, vae = tiny.write_single_files(tmp_path, folder)
    names = ("qwen_image_bf16.safetensors", "qwen_2.5_vl_7b.safetensors", "qwen_image_vae.safetensors")
    assert (path.name, text_encoder.name, vae.name) == names
    assert _shapes(load_file(path)) == DIT
    read = QwenImageTransformer2DModel.from_single_file(
        str(path), config=str(folder), subfolder="transformer", torch_dtype=torch.bfloat16, local_files_only=True
    )
    assert _same(read.state_dict(), load_file(path))
    encoder = load_file(text_encoder)
    tops = {name.split(".")[0] for name in encoder}
    assert tops == {"model", "visual", "lm_head"}
    assert {name.split(".")[1] for name in encoder if name.startswith("model.")} == {"embed_tokens", "layers", "norm"}
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    new = load_file(tiny.write_single_text_encoder(tmp_path / "new.safetensors", folder, new_names=True))
    assert _same(new, dict(model.state_dict()))
    marked = load_file(tiny.write_single_transformer(tmp_path / "2511.safetensors", folder, zero_time=True))
    assert marked.pop("__index_timestep_zero__").numel() == 0
    assert _same(marked, load_file(path))


def test_an_all_in_one_file_is_its_parts_under_prefixes(folder, tmp_path):
    tensors = load_file(tiny.write_all_in_one(tmp_path / "all.safetensors", folder))
    prefixes = ("model.diffusion_model.", "text_encoders.qwen25_7b.transformer.", "vae.")
    parts = zip(prefixes, tiny.write_single_files(tmp_path, folder), strict=True)
    expected = {prefix + name: value for prefix, path in parts for name, value in load_file(path).items()}
    assert tensors.pop("text_encoders.qwen25_7b.logit_scale").shape == ()
    assert _same(tensors, expected)


@pytest.mark.parametrize(("quant", "most"), [("Q4_0", 0.1), ("Q8_0", 0.01), ("BF16", 0)])
def test_gguf_gives_the_weights_back(folder, tmp_path, quant, most):
    weights = read_part(folder, "transformer")
    reader = gguf.GGUFReader(tiny.write_gguf(tmp_path / "dit.gguf", folder, quant))
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"qwen_image"
    assert {tensor.name for tensor in reader.tensors} == weights.keys()
    for tensor in reader.tensors:
        value = weights[tensor.name].float().numpy()
        assert list(tensor.shape[::-1]) == list(value.shape)
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        error = np.linalg.norm(read - value) / np.linalg.norm(value)
        assert error <= (most if tensor.tensor_type.name == quant else 1e-3), tensor.name
        if tensor.name.startswith("transformer_blocks.") and len(value.shape) == 2:
            assert tensor.tensor_type.name == quant


def test_a_gguf_text_encoder_has_llama_cpp_s_names(folder, tmp_path):
    reader = gguf.GGUFReader(tiny.write_gguf_text_encoder(tmp_path / "te.gguf", folder, "Q8_0"))
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"qwen2vl"
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.0.attn_q.bias", "blk.2.ffn_down.weight"} <= names
    assert not any("visual" in name for name in names)


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def test_a_lora_has_ai_toolkits_keys_and_metadata(tmp_path):
    """Fitted to the checkpoint that AI Toolkit's own were recorded with."""
    base = GOLDEN / "base"
    targets = json.loads((GOLDEN / "index.json").read_text())["lora_targets"]
    assert set(tiny.trained_layers(base)) == {name.removeprefix("transformer.") for name in targets}
    path = tiny.make_lora(tmp_path / "fox.safetensors", base, dtype=torch.float32)
    assert _shapes(load_file(path)) == _shapes(load_file(GOLDEN / "lora" / "lora_f32.safetensors"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_base_model_version"], metadata["name"]) == ("qwen_image", "fox")
    every = load_file(tiny.make_lora(tmp_path / "all.safetensors", base, transformer_only=False))
    around = {key.split(".lora_")[0].removeprefix("diffusion_model.") for key in every if "blocks" not in key}
    assert around == AROUND.keys()


@pytest.mark.parametrize(
    ("recorded", "options"),
    {
        "lokr_full_f16": {},
        "lokr_factor_f16": {"factor": 8},
        "lokr_decomposed_f32": {"rank": 4},
        "lokr_old_decomposed_f32": {"rank": 4, "alpha": 2.0, "old_format": True},
        "lokr_old_full_f16": {"old_format": True},
    }.items(),
)
def test_a_lokr_has_ai_toolkits_keys_and_alphas(tmp_path, recorded, options):
    dtype = torch.float16 if recorded.endswith("f16") else torch.float32
    theirs = load_file(GOLDEN / "lora" / f"{recorded}.safetensors")
    ours = load_file(tiny.make_lokr(tmp_path / "lokr.safetensors", GOLDEN / "base", dtype=dtype, **options))
    assert _shapes(ours) == _shapes(theirs)
    assert {value.dtype for value in ours.values()} == {value.dtype for value in theirs.values()} == {dtype}
    alphas = [name for name in ours if name.endswith(".alpha")]
    assert len(alphas) == 28
    assert all(torch.equal(ours[name], theirs[name]) for name in alphas)
