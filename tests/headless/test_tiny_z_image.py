"""The tiny Z-Image: diffusers reads and renders it, and single files and LoRAs have the real ones' names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from comfyui_aitk.headless.tiny import containers
from comfyui_aitk.headless.tiny import z_image as tiny
from comfyui_aitk.headless.tiny.files import read_part
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

GOLDEN = Path(__file__).parent.parent / "golden" / "zimage"
WIDTH, FFN, TEXT, HEAD = 128, 341, 32, 128
# original name -> shape. Source: diffusers' converter of the release's own file
BLOCK = {
    "attention.qkv.weight": (3 * WIDTH, WIDTH),
    "attention.out.weight": (WIDTH, WIDTH),
    "attention.q_norm.weight": (HEAD,),
    "attention.k_norm.weight": (HEAD,),
    "feed_forward.w1.weight": (FFN, WIDTH),
    "feed_forward.w2.weight": (WIDTH, FFN),
    "feed_forward.w3.weight": (FFN, WIDTH),
    "ffn_norm1.weight": (WIDTH,),
    "ffn_norm2.weight": (WIDTH,),
    "attention_norm1.weight": (WIDTH,),
    "attention_norm2.weight": (WIDTH,),
}
MODULATED = BLOCK | {"adaLN_modulation.0.weight": (4 * WIDTH, WIDTH), "adaLN_modulation.0.bias": (4 * WIDTH,)}
DIT = {
    "x_embedder.weight": (WIDTH, 64),
    "x_embedder.bias": (WIDTH,),
    "x_pad_token": (1, WIDTH),
    "cap_pad_token": (1, WIDTH),
    "t_embedder.mlp.0.weight": (1024, 256),
    "t_embedder.mlp.0.bias": (1024,),
    "t_embedder.mlp.2.weight": (WIDTH, 1024),
    "t_embedder.mlp.2.bias": (WIDTH,),
    "cap_embedder.0.weight": (TEXT,),
    "cap_embedder.1.weight": (WIDTH, TEXT),
    "cap_embedder.1.bias": (WIDTH,),
    "final_layer.adaLN_modulation.1.weight": (WIDTH, WIDTH),
    "final_layer.adaLN_modulation.1.bias": (WIDTH,),
    "final_layer.linear.weight": (64, WIDTH),
    "final_layer.linear.bias": (64,),
    **{f"{b}.{n}": s for b in ("layers.0", "layers.1", "noise_refiner.0") for n, s in MODULATED.items()},
    **{f"context_refiner.0.{name}": shape for name, shape in BLOCK.items()},
}
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("tiny") / "z_image")


@pytest.fixture(scope="module")
def pipeline(folder) -> ZImagePipeline:
    pipe = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_small_and_says_what_tensors_do_not_as_the_real_one(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4.5e6
    parts = ("transformer", "vae", "text_encoder")
    dit, vae, text = (json.loads((folder / part / "config.json").read_text()) for part in parts)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (dit["axes_dims"], dit["axes_lens"]) == ([32, 48, 48], [1536, 512, 512])
    assert (dit["rope_theta"], dit["t_scale"], dit["norm_eps"], dit["in_channels"]) == (256.0, 1000.0, 1e-5, 16)
    assert (dit["all_patch_size"], dit["all_f_patch_size"], dit["siglip_feat_dim"]) == ([2], [1], None)
    assert dit["dim"] == HEAD * dit["n_heads"] == HEAD * dit["n_kv_heads"]
    assert dit["cap_feat_dim"] == text["hidden_size"]
    assert text["architectures"] == ["Qwen3ForCausalLM"]
    assert (text["head_dim"], text["rms_norm_eps"], text["max_position_embeddings"]) == (HEAD, 1e-6, 40960)
    assert (text["tie_word_embeddings"], text["attention_bias"], text["sliding_window"]) == (True, False, None)
    assert text["num_attention_heads"] > text["num_key_value_heads"]
    assert Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").config.rope_parameters["rope_theta"] == 1e6
    assert (vae["norm_num_groups"], vae["scaling_factor"], vae["shift_factor"]) == (32, 0.3611, 0.1159)
    assert (scheduler["shift"], scheduler["use_dynamic_shifting"]) == (3.0, False)


def test_the_same_seed_makes_the_same_bytes_and_leaves_torchs_own_alone(tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        state = torch.get_rng_state()
        folder = tiny.make_checkpoint(tmp_path / name / "z_image", seed)
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
        inputs = {"prompt": "a red fox", "height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
        generator = torch.Generator().manual_seed(1)
        return pipeline(**inputs | {"generator": generator, "output_type": "np"} | changed).images[0]

    plain = render()
    assert plain.shape == (64, 64, 3)
    assert plain.std() > 0.1
    pipeline.load_lora_weights(str(tiny.make_lora(tmp_path / "lora.safetensors", folder)))
    pictures = {"lora": render()}
    pipeline.unload_lora_weights()
    assert np.array_equal(plain, render())
    pictures |= {
        "prompt": render(prompt="a painting of a cat"),
        "negative": render(negative_prompt="blurry"),
        "guidance": render(guidance_scale=0.0),
        "generator": render(generator=torch.Generator().manual_seed(2)),
    }
    for name, picture in pictures.items():
        assert np.abs(picture - plain).mean() > 0.02, name


def test_a_prompt_is_thought_about_unless_told_not_to(folder, pipeline):
    """Both classes of the tokenizer: AI Toolkit's, which the file names, and diffusers', which model_index names."""
    vocabulary = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    opened = "<|im_start|>user\na fox<|im_end|>\n<|im_start|>assistant\n"
    for tokenizer in (AutoTokenizer.from_pretrained(folder / "tokenizer"), pipeline.tokenizer):
        for thinking, expected in ((True, opened), (False, f"{opened}<think>\n\n</think>\n\n")):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": "a fox"}],
                tokenize=False, add_generation_prompt=True, enable_thinking=thinking,
            )  # fmt: skip
            assert text == expected
        ids = tokenizer(expected + "é 🦊 2024", padding="max_length", max_length=512, truncation=True).input_ids
        assert ids[-1] == tokenizer.pad_token_id
        assert max(ids) < len(tokenizer) < vocabulary
        assert ids == pipeline.tokenizer(expected + "é 🦊 2024", padding="max_length", max_length=512).input_ids


# --- single files -----------------------------------------------------------------------------------------------------


def test_the_transformer_has_the_original_names_and_diffusers_gives_the_folder_back(folder, tmp_path):
    path, text_encoder, vae = tiny.write_single_files(tmp_path, folder)
    names = ("z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors")
    assert (path.name, text_encoder.name, vae.name) == names
    tensors, diffusers = load_file(path), read_part(folder, "transformer")
    assert _shapes(tensors) == DIT
    assert _same(convert_z_image_transformer_checkpoint_to_diffusers(dict(tensors)), diffusers)
    prefixed = tiny.write_single_transformer(tmp_path / "p.safetensors", folder, PREFIX, norm_final=True)
    assert load_file(prefixed).keys() == {f"{PREFIX}{name}" for name in (*tensors, "norm_final.weight")}
    assert _same(convert_z_image_transformer_checkpoint_to_diffusers(load_file(prefixed)), diffusers)
    for file in (path, prefixed):
        read = ZImageTransformer2DModel.from_single_file(
            str(file), config=str(folder), subfolder="transformer", torch_dtype=torch.bfloat16, local_files_only=True
        )
        assert _same(read.state_dict(), diffusers)


def test_a_file_may_have_flat_pad_tokens_and_a_norm_that_was_never_written(folder, tmp_path):
    plain = tiny.original_transformer(read_part(folder, "transformer"))
    path = tiny.write_single_transformer(tmp_path / "x.safetensors", folder, flat_pad_tokens=True, norm_final=True)
    tensors = load_file(path)
    norm = tensors.pop("norm_final.weight")
    assert norm.shape == (WIDTH,)
    assert norm.isnan().any()
    for name in ("x_pad_token", "cap_pad_token"):
        assert tensors[name].shape == (WIDTH,)
        tensors[name] = tensors[name][None]
    assert _same(tensors, plain)


def test_with_three_heads_all_rows_of_the_blocks_are_quantised(tmp_path):
    folder = tiny.make_checkpoint(tmp_path / "three", heads=3)
    tensors = load_file(tiny.write_single_transformer(tmp_path / "dit.safetensors", folder))
    assert tensors["layers.0.attention.qkv.weight"].shape == (9 * HEAD, 3 * HEAD)
    assert tensors["layers.0.feed_forward.w2.weight"].shape == (3 * HEAD, 1024)
    diffusers = read_part(folder, "transformer")
    for part, value in zip("qkv", tensors["layers.0.attention.qkv.weight"].chunk(3), strict=True):
        assert torch.equal(value, diffusers[f"layers.0.attention.to_{part}.weight"])
    reader = gguf.GGUFReader(tiny.write_gguf(tmp_path / "dit.gguf", folder, "Q4_K"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["layers.0.feed_forward.w2.weight"] == kinds["layers.0.adaLN_modulation.0.weight"] == "Q4_K"
    assert kinds["layers.0.attention.qkv.weight"] == kinds["noise_refiner.0.feed_forward.w1.weight"] == "Q8_0"
    blocks = {kind for name, kind in kinds.items() if name.startswith(("layers.", "noise_", "context_"))}
    assert blocks == {"Q4_K", "Q8_0", "F32"}


def test_the_text_encoder_has_no_head(folder, tmp_path):
    path = tiny.write_single_text_encoder(tmp_path / "qwen_3_4b.safetensors", folder)
    tensors = load_file(path)
    layers = {
        "self_attn.q_proj.weight": (2 * HEAD, TEXT),
        "self_attn.k_proj.weight": (HEAD, TEXT),
        "self_attn.v_proj.weight": (HEAD, TEXT),
        "self_attn.o_proj.weight": (TEXT, 2 * HEAD),
        "self_attn.q_norm.weight": (HEAD,),
        "self_attn.k_norm.weight": (HEAD,),
        "mlp.gate_proj.weight": (64, TEXT),
        "mlp.up_proj.weight": (64, TEXT),
        "mlp.down_proj.weight": (TEXT, 64),
        "input_layernorm.weight": (TEXT,),
        "post_attention_layernorm.weight": (TEXT,),
    }
    assert _shapes(tensors) == {
        "model.embed_tokens.weight": (512, TEXT),
        "model.norm.weight": (TEXT,),
        **{f"model.layers.{n}.{name}": shape for n in range(3) for name, shape in layers.items()},
    }
    model = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert _same(tensors, {f"model.{name}": value for name, value in model.model.state_dict().items()})


def test_diffusers_reads_the_autoencoder(folder, tmp_path):
    path = containers.write_ae(tmp_path / "ae.safetensors", folder)
    vae = AutoencoderKL.from_single_file(
        str(path), config=str(folder), subfolder="vae", torch_dtype=torch.bfloat16, local_files_only=True
    )
    assert _same(vae.state_dict(), read_part(folder, "vae"))


def test_an_all_in_one_file_is_its_parts_under_prefixes(folder, tmp_path):
    tensors = load_file(tiny.write_all_in_one(tmp_path / "all.safetensors", folder))
    prefixes = (PREFIX, "text_encoders.qwen3_4b.transformer.", "vae.")
    parts = zip(prefixes, tiny.write_single_files(tmp_path, folder), strict=True)
    expected = {prefix + name: value for prefix, path in parts for name, value in load_file(path).items()}
    assert tensors.pop("text_encoders.qwen3_4b.logit_scale").shape == ()
    assert "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight" in tensors
    assert _same(tensors, expected)
    odd = load_file(tiny.write_all_in_one(tmp_path / "odd.safetensors", folder, norm_final=True))
    assert odd[f"{PREFIX}norm_final.weight"].isnan().any()


@pytest.mark.parametrize("flat", [False, True], ids=["pad tokens of (1, dim)", "flat pad tokens"])
@pytest.mark.parametrize(("quant", "most"), [("Q4_0", 0.1), ("Q8_0", 0.01), ("BF16", 0)])
def test_gguf_gives_the_weights_back(folder, tmp_path, quant, most, flat):
    weights = tiny.original_transformer(read_part(folder, "transformer"), flat_pad_tokens=flat)
    reader = gguf.GGUFReader(tiny.write_gguf(tmp_path / "dit.gguf", folder, quant, flat_pad_tokens=flat))
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"lumina2"
    assert {tensor.name for tensor in reader.tensors} == weights.keys()
    kinds = {}
    for tensor in reader.tensors:
        value = weights[tensor.name].float().numpy()
        kinds[tensor.name] = tensor.tensor_type.name
        assert list(tensor.shape[::-1]) == list(value.shape)
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        error = np.linalg.norm(read - value) / np.linalg.norm(value)
        assert error <= (most if kinds[tensor.name] == quant else 1e-4), tensor.name
    assert kinds["layers.0.attention.qkv.weight"] == kinds["context_refiner.0.feed_forward.w1.weight"] == quant
    # 341 long: no whole number of blocks
    assert kinds["layers.0.feed_forward.w2.weight"] == ("BF16" if quant == "BF16" else "F16")
    assert kinds["x_pad_token"] == ("F32" if flat else "BF16" if quant == "BF16" else "F16")


@pytest.mark.parametrize("spelling", ["old", "new", "metadata"])
@pytest.mark.parametrize("part", ["transformer", "text encoder"])
def test_float8_gives_the_weights_back(folder, tmp_path, part, spelling):
    write = tiny.write_single_transformer if part == "transformer" else tiny.write_single_text_encoder
    plain = load_file(write(tmp_path / "plain.safetensors", folder))
    tensors = load_file(
        containers.write_scaled_float8(tmp_path / "f.safetensors", tmp_path / "plain.safetensors", spelling)
    )
    float8 = {name for name, value in tensors.items() if value.dtype == torch.float8_e4m3fn} - {"scaled_fp8"}
    # two of three
    assert len(float8) == {"transformer": 16, "text encoder": 14}[part]
    scale = "scale_weight" if spelling == "old" else "weight_scale"
    for name, value in plain.items():
        read = tensors[name].float()
        if name in float8:
            read = read * tensors[f"{name.removesuffix('.weight')}.{scale}"]
            assert (read - value).norm() / value.norm() < 0.05, name
        else:
            assert torch.equal(read, value.float())


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def test_a_lora_has_ai_toolkits_keys_and_metadata(tmp_path):
    """Fitted to the checkpoint that AI Toolkit's own were recorded with."""
    base = GOLDEN / "base"
    targets = json.loads((GOLDEN / "index.json").read_text())["lora_targets"]
    assert set(tiny.trained_layers(base)) == {name.removeprefix("transformer.") for name in targets}
    path = tiny.make_lora(tmp_path / "fox.safetensors", base, dtype=torch.float32, trigger_word="t1ny")
    assert _shapes(load_file(path)) == _shapes(load_file(GOLDEN / "lora" / "lora_f32.safetensors"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_base_model_version"], metadata["name"]) == ("zimage", "fox")
    assert json.loads(metadata["ss_tag_frequency"]) == {"1_t1ny": {"t1ny": 1}}
    every = load_file(tiny.make_lora(tmp_path / "all.safetensors", base, transformer_only=False))
    assert _shapes(every) == _shapes(load_file(GOLDEN / "lora" / "lora_all_f32.safetensors"))
    assert {value.dtype for value in every.values()} == {torch.bfloat16}
    some = load_file(tiny.make_lora(tmp_path / "some.safetensors", base, only=["layers.1.attention"], alpha=2.0))
    parts = {f"diffusion_model.layers.1.attention.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")}
    leaves = ("lora_A.weight", "lora_B.weight", "alpha")
    assert some.keys() == {f"{part}.{leaf}" for part in parts for leaf in leaves}


@pytest.mark.parametrize(
    ("recorded", "options"),
    {
        "lokr_full_f32": {},
        "lokr_full_f16": {},
        "lokr_factor_f16": {"factor": 8},
        "lokr_decomposed_f32": {"rank": 4},
        "lokr_old_decomposed_f32": {"rank": 4, "alpha": 2.0, "old_format": True},
    }.items(),
)
def test_a_lokr_has_ai_toolkits_keys_and_alphas(tmp_path, recorded, options):
    dtype = torch.float16 if recorded.endswith("f16") else torch.float32
    theirs = load_file(GOLDEN / "lora" / f"{recorded}.safetensors")
    ours = load_file(tiny.make_lokr(tmp_path / "lokr.safetensors", GOLDEN / "base", dtype=dtype, **options))
    assert _shapes(ours) == _shapes(theirs)
    assert {value.dtype for value in ours.values()} == {value.dtype for value in theirs.values()} == {dtype}
    alphas = [name for name in ours if name.endswith(".alpha")]
    assert len(alphas) == 16
    assert all(torch.equal(ours[name], theirs[name]) for name in alphas)
